use crate::sandbox::Sandbox;

const COMMANDS: [&[&str]; 18] = [
    &["init"],
    &["check"],
    &["backup"],
    &["wal", "receive"],
    &["wal", "push"],
    &["wal", "get"],
    &["list"],
    &["show"],
    &["restore"],
    &["verify"],
    &["key", "create"],
    &["key", "list"],
    &["key", "add"],
    &["key", "remove"],
    &["key", "check"],
    &["completions"],
    &["exit-codes"],
    &[],
];

#[test]
fn every_command_explains_itself_with_examples() {
    let sandbox = Sandbox::new();
    for command in COMMANDS {
        let run = sandbox.run(&[command, &["--help"]].concat()).expect(0);
        let example = format!("\n  holdfast {}", command.join(" "));
        assert!(run.stdout.contains("Examples:") && run.stdout.contains(example.trim_end()), "{}", run.stdout);
        assert!(run.stdout.contains("--config"), "{}", run.stdout);
    }
    let top = sandbox.run(&["--help"]).stdout;
    for command in COMMANDS {
        assert!(
            command.first().is_none_or(|name| top.contains(&format!("\n  {name}"))),
            "{command:?} is not in:\n{top}"
        );
    }
    for hidden in ["generate", "prefetch"] {
        assert!(!top.contains(&format!("\n  {hidden}")), "{top}");
    }
    for place in ["HOLDFAST_CONFIG", "/etc/holdfast/holdfast.toml", "~/.config/holdfast/holdfast.toml"] {
        assert!(top.contains(place), "{place} is not in:\n{top}");
    }
}

#[test]
fn exit_codes_are_explained() {
    let sandbox = Sandbox::new();
    let table = sandbox.run(&["exit-codes"]).expect(0).stdout;
    let help = sandbox.run(&["help", "exit-codes"]).expect(0).stdout;
    let json = sandbox.run(&["exit-codes", "--json"]).expect(0).json();
    for code in [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 126, 127, 130] {
        assert!(table.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{code}: {table}");
        assert!(help.contains(&format!(" {code}  ")), "{code}: {help}");
        assert!(json.as_array().unwrap().iter().any(|entry| entry["code"] == code), "{code}: {json}");
    }
}

#[test]
fn shells_get_completions() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox.run(&["completions", shell]).expect(0).stdout;
        assert!(script.contains("holdfast") && script.contains("restore"), "{shell}: {script}");
    }
    sandbox.run(&["completions", "cobol"]).expect(2);
}

#[test]
fn the_example_configuration_is_accepted() {
    let sandbox = Sandbox::new();
    let example = sandbox.run(&["generate", "example"]).expect(0).stdout;
    sandbox.configure(&example.replace("/var/lib/holdfast", "/nowhere/at/all"));
    sandbox.run(&["list"]).expect(10);
}
