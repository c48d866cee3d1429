use crate::sandbox::Sandbox;

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let sandbox = Sandbox::new();
    sandbox.add_to_configuration("[source.chat.wal]\nintervall = \"1s\"\n");
    let run = sandbox.run(&["list"]).expect(2).says("holdfast.toml, line 5, column 1: unknown key `intervall`");
    assert!(run.stderr.contains("\nhint: Did you mean `interval`?"), "{}", run.stderr);
    assert_eq!(run.stdout, "");
}

#[test]
fn errors_are_json_on_request() {
    let sandbox = Sandbox::new();
    sandbox.add_to_configuration("[source.chat]\nrepository = \"mian\"\n");
    let run = sandbox.run(&["list", "--json"]).expect(2);
    let report: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!((&report["exit_code"], &report["hint"]), (&2.into(), &"Did you mean `main`?".into()));
    assert!(report["error"].as_str().unwrap().contains("line 5, column 14"), "{report}");
    assert!(report["causes"].is_array());
}

#[test]
fn the_file_is_found_in_four_places() {
    let sandbox = Sandbox::with_repository();
    let run = |arguments: &[&str], variable: Option<&str>| {
        let mut command = sandbox.command(arguments);
        match variable {
            Some(value) => command.env("HOLDFAST_CONFIG", value),
            None => command.env_remove("HOLDFAST_CONFIG"),
        };
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let file = sandbox.config_file().display().to_string();
    assert_eq!(run(&["--config", &file, "list"], Some("/nowhere.toml")).0, Some(0));
    assert_eq!(run(&["list"], Some(&file)).0, Some(0));
    let (code, said) = run(&["list"], Some("/nowhere.toml"));
    assert!(code == Some(2) && said.contains("/nowhere.toml"), "{said}");
    if std::path::Path::new("/etc/holdfast/holdfast.toml").exists() {
        return;
    }
    let (code, said) = run(&["list"], None);
    assert!(code == Some(2) && said.contains("/etc/holdfast/holdfast.toml"), "{said}");
    std::fs::create_dir_all(sandbox.path(".config/holdfast")).unwrap();
    std::fs::copy(sandbox.config_file(), sandbox.path(".config/holdfast/holdfast.toml")).unwrap();
    assert_eq!(run(&["list"], None).0, Some(0));
}
