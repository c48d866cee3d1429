use crate::sandbox::Sandbox;

#[test]
fn recipients_come_and_go() {
    let sandbox = Sandbox::with_repository();
    let create = |name: &str| {
        let file = sandbox.path(name).display().to_string();
        sandbox.run(&["key", "create", &file]).expect(0).stdout.trim().to_owned()
    };
    let list = || -> Vec<String> {
        let run = sandbox.run(&["key", "list"]).expect(0);
        run.stdout.lines().map(str::to_owned).collect()
    };
    let own = list().remove(0);
    let other = create("other.txt");
    sandbox.run(&["key", "add", "main", &other]).expect(0);
    assert_eq!(list(), [own.clone(), other.clone()]);

    // Nobody to ask: nothing is done.
    sandbox.run(&["key", "remove", "main", &other]).expect(2).says("--yes");
    sandbox.run(&["key", "remove", "main", &other, "--dry-run"]).expect(0);
    assert_eq!(list().len(), 2);
    sandbox.run(&["key", "remove", "main", &own, "--yes"]).expect(2).says("your own identity");
    sandbox.run(&["key", "remove", "main", &other, "--yes"]).expect(0);
    assert_eq!(list(), std::slice::from_ref(&own));
    sandbox.run(&["key", "remove", "main", &own, "--yes"]).expect(2);
    sandbox.run(&["key", "add", "main", "age1nonsense"]).expect(2).says("is not an age recipient");
    sandbox.run(&["key", "check"]).expect(0);
}

#[test]
fn a_pin_is_held_and_can_be_changed() {
    let sandbox = Sandbox::with_repository();
    let list = || sandbox.run(&["key", "list"]).stdout;
    let own = list().trim().to_owned();
    let file = sandbox.path("other.txt").display().to_string();
    let other = sandbox.run(&["key", "create", &file]).expect(0).stdout.trim().to_owned();

    sandbox.add_to_configuration(&format!("recipients = [\"{own}\"]\n"));
    sandbox.run(&["key", "check"]).expect(0);
    sandbox.run(&["key", "add", "main", &other]).expect(0).says("now has to name exactly these");
    sandbox.run(&["key", "check"]).expect(12).says("are not those that the configuration asks for");
    sandbox.run(&["verify"]).expect(0).says("are not those that the configuration asks for");
    // The same command again completes what an interrupted one began.
    sandbox.run(&["key", "add", "main", &other]).expect(0);
    sandbox.run(&["key", "remove", "main", &other, "--yes"]).expect(0);
    sandbox.run(&["key", "check"]).expect(0);
}

#[test]
fn passphrases_come_from_files_where_there_is_no_terminal() {
    let sandbox = Sandbox::new();
    let identity = sandbox.path("identity.txt").display().to_string();
    let passphrase = sandbox.path("passphrase").display().to_string();
    std::fs::write(&passphrase, "correct horse\nanything else\n").unwrap();
    sandbox.run(&["init", "--new-identity", &identity, "--passphrase"]).expect(12).says("no terminal");
    sandbox.add_to_configuration(&format!("identity_passphrase_file = \"{passphrase}\"\n"));
    sandbox.run(&["init", "--new-identity", &identity, "--passphrase"]).expect(0);
    assert!(std::fs::read(&identity).unwrap().starts_with(b"age-encryption.org/v1"));
    sandbox.run(&["key", "check"]).expect(0);
    std::fs::write(&passphrase, "wrong\n").unwrap();
    sandbox.run(&["key", "check"]).expect(12).says("the passphrase does not open the identity file");
    std::fs::write(&passphrase, "").unwrap();
    sandbox.run(&["key", "check"]).expect(2).says("the passphrase is empty");
}

#[test]
fn snapshots_are_listed_without_a_key_and_reading_takes_one() {
    let sandbox = Sandbox::with_repository();
    let repository = sandbox.path("repository").display().to_string();
    sandbox.configure(&format!("[repository.main]\npath = \"{repository}\"\n[source.chat]\n"));
    let listed = sandbox.run(&["list", "chat", "--json"]).expect(0).json();
    assert!(listed["sources"][0]["sealed"].as_str().unwrap().contains("no identity"), "{listed}");
    sandbox.run(&["verify"]).expect(12).says("identity_file");
}
