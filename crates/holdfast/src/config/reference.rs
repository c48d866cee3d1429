//! Every setting, in one table: the generated reference, the tests and the hints for misspelt keys come from it.

use crate::table::Lines as _;

/// One key of the configuration file.
pub(crate) struct Setting {
    pub(crate) table: &'static str,
    pub(crate) key: &'static str,
    pub(crate) kind: &'static str,
    /// What holds if the key is absent.
    pub(crate) default: &'static str,
    pub(crate) text: &'static str,
    /// As it is written in the file.
    pub(crate) example: &'static str,
}

pub(crate) const REPOSITORY: &str = "repository.NAME";
pub(crate) const SOURCE: &str = "source.NAME";
pub(crate) const BACKUP: &str = "source.NAME.backup";
pub(crate) const WAL: &str = "source.NAME.wal";
pub(crate) const PLACES: &str = "source.NAME.places";
pub(crate) const RETENTION: &str = "source.NAME.retention";

/// The tables in the order of the reference, each with what it is for.
const TABLES: [(&str, &str); 6] = [
    (REPOSITORY, "Where backups are kept, and who can read them. NAME is yours to choose."),
    (
        SOURCE,
        "A PostgreSQL cluster to protect. NAME is yours to choose (letters, digits, `.`, `-`, `_`; at most 63) and \
         becomes part of the names of its objects: do not change it later. A host that only restores needs no \
         [source] table as long as it has one repository.",
    ),
    (BACKUP, "How `holdfast backup` works. Its options on the command line come first."),
    (WAL, "How `holdfast wal receive` works."),
    (
        RETENTION,
        "What `holdfast expire` keeps. Rules add up: a snapshot goes when none keeps it. Without this table nothing goes.",
    ),
    (PLACES, "In how many places everything has to be. `holdfast check` says whether it is."),
];

pub(crate) const SETTINGS: [Setting; 47] = [
    Setting {
        table: REPOSITORY,
        key: "path",
        kind: "absolute path",
        default: "none: this or `url` is needed",
        text: "The directory of the repository.",
        example: "\"/var/lib/holdfast\"",
    },
    Setting {
        table: REPOSITORY,
        key: "url",
        kind: "SERVICE://BUCKET/PREFIX, or sftp://USER@HOST:PORT/PATH",
        default: "none: this or `path` is needed",
        text: "The repository's place in an object store. SERVICE is `s3` (and whatever speaks its protocol), `azblob` \
               (Azure Blob; BUCKET is the container), `gcs`, `oss` (Aliyun) or `cos` (Tencent). The bucket has to be \
               there, and the store has to support creation on condition that there is no such object. With `sftp`: a directory \
               of another machine that runs OpenSSH's server; `ssh` connects, so that its configuration holds.",
        example: "\"s3://backups/chat\"",
    },
    Setting {
        table: REPOSITORY,
        key: "endpoint",
        kind: "URL",
        default: "where the provider has the service",
        text: "Where the object store is.",
        example: "\"https://s3.example.org:9000\"",
    },
    Setting {
        table: REPOSITORY,
        key: "region",
        kind: "name of a region",
        default: "`us-east-1`",
        text: "The region of an S3 bucket.",
        example: "\"eu-central-1\"",
    },
    Setting {
        table: REPOSITORY,
        key: "path_style",
        kind: "true or false",
        default: "true if there is an `endpoint`",
        text: "Whether requests name an S3 bucket in the path, and not in the host's name.",
        example: "true",
    },
    Setting {
        table: REPOSITORY,
        key: "ca_file",
        kind: "absolute path",
        default: "none",
        text: "Certificates (PEM) that are trusted besides those of the system. There is no way to trust any.",
        example: "\"/etc/holdfast/ca.pem\"",
    },
    Setting {
        table: REPOSITORY,
        key: "credentials_file",
        kind: "absolute path",
        default: "the provider's environment variables, files and instance identity",
        text: "A TOML file of its own for what is secret, which others must not be able to read. Keys for s3: \
               `access_key_id`, `secret_access_key`, `session_token`, `role_arn`, `external_id`, `profile`; azblob: \
               `account_name`, `account_key`, `sas_token`; gcs: `credential`, `credential_path`, `service_account`; \
               oss: `access_key_id`, `access_key_secret`, `security_token`, `role_arn`, `external_id`; cos: \
               `secret_id`, `secret_key`, `security_token`.",
        example: "\"/etc/holdfast/s3.toml\"",
    },
    Setting {
        table: REPOSITORY,
        key: "ssh_key_file",
        kind: "absolute path",
        default: "what `ssh` uses for the host",
        text: "The private key for sftp://. It must need no passphrase, or be held by an agent.",
        example: "\"/etc/holdfast/ssh_key\"",
    },
    Setting {
        table: REPOSITORY,
        key: "known_hosts_file",
        kind: "absolute path",
        default: "what `ssh` uses",
        text: "The keys of hosts for sftp://. A host that is not in it is never trusted.",
        example: "\"/etc/holdfast/known_hosts\"",
    },
    Setting {
        table: REPOSITORY,
        key: "site",
        kind: "text",
        default: "a site of its own",
        text: "What may be lost at once: repositories with the same text are not counted twice for `sites`.",
        example: "\"fra1\"",
    },
    Setting {
        table: REPOSITORY,
        key: "identity_file",
        kind: "absolute path",
        default: "none",
        text: "The age identity that opens the repository. Only where restores and verification run: a host that \
               only writes backups is safer without it.",
        example: "\"/etc/holdfast/identity.age\"",
    },
    Setting {
        table: REPOSITORY,
        key: "identity_passphrase_file",
        kind: "absolute path",
        default: "asked for on the terminal",
        text: "A file whose first line is the passphrase of `identity_file`. Needed where a protected identity is \
               used without a terminal, as in `restore_command`.",
        example: "\"/run/credentials/holdfast/passphrase\"",
    },
    Setting {
        table: REPOSITORY,
        key: "recipients",
        kind: "list of age recipients",
        default: "whatever the repository says",
        text: "Pins who can read the backups: if the repository names any other recipients, nothing is written to it.",
        example: "[\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"]",
    },
    Setting {
        table: SOURCE,
        key: "connection",
        kind: "libpq connection string or URI",
        default: "the socket in /var/run/postgresql, as the operating system's user",
        text: "How to reach the server. The role needs REPLICATION and the backup functions; `holdfast check` says \
               what is missing. A password belongs in a passfile, not here.",
        example: "\"host=/run/postgresql user=holdfast\"",
    },
    Setting {
        table: SOURCE,
        key: "repository",
        kind: "name of a [repository] table",
        default: "the only repository",
        text: "Where backups of this source go.",
        example: "\"main\"",
    },
    Setting {
        table: SOURCE,
        key: "copies",
        kind: "list of names of [repository] tables",
        default: "none",
        text: "Further repositories that get the same, byte for byte, at the same time. `holdfast init --like` makes them. One \
               that is away holds up nothing, and is brought up by copying when it is back.",
        example: "[]",
    },
    Setting {
        table: SOURCE,
        key: "required",
        kind: "list of names of [repository] tables",
        default: "any one of `repository` and `copies`",
        text: "The repositories without which a backup fails, and log is not confirmed to the server.",
        example: "[]",
    },
    Setting {
        table: SOURCE,
        key: "data_directory",
        kind: "absolute path",
        default: "what the server says",
        text: "The cluster's data directory as this host sees it; that of the server that backups are taken from, if \
               they are taken from a standby.",
        example: "\"/var/lib/postgresql/15/main\"",
    },
    Setting {
        table: SOURCE,
        key: "slot",
        kind: "name of a physical replication slot",
        default: "`holdfast_` and the source's name, with `_` for everything but a-z and 0-9",
        text: "Keeps the log at the server until it is safe in the repository. Made by `holdfast wal receive \
               --create-slot`.",
        example: "\"holdfast_chat\"",
    },
    Setting {
        table: SOURCE,
        key: "spool",
        kind: "absolute path",
        default: "none",
        text: "Where `holdfast wal receive` keeps log while the repository is away. Without it the server keeps it.",
        example: "\"/var/spool/holdfast/chat\"",
    },
    Setting {
        table: BACKUP,
        key: "connection",
        kind: "libpq connection string or URI",
        default: "the source's `connection`",
        text: "Where backups are taken, if not at the primary: a standby of it, on the host where `holdfast backup` runs. \
               The log still comes from the source's `connection`. A backup from a standby begins at the primary's last \
               checkpoint that the standby has replayed. When the standby is promoted, backups go on if the source's \
               `connection` leads to it then.",
        example: "\"host=/run/postgresql user=holdfast\"",
    },
    Setting {
        table: BACKUP,
        key: "parallel",
        kind: "number from 1 to 256",
        default: "the number of CPUs, at most 4",
        text: "How many files are read, compressed and sealed at once.",
        example: "2",
    },
    Setting {
        table: BACKUP,
        key: "rate_limit",
        kind: "size with a unit",
        default: "none",
        text: "How many bytes a second are read from the data directory at most.",
        example: "\"200MiB\"",
    },
    Setting {
        table: BACKUP,
        key: "iops_limit",
        kind: "number from 1 to 10000000",
        default: "none",
        text: "How many reads a second are asked of the data directory at most. One read brings at most 1 MiB.",
        example: "2000",
    },
    Setting {
        table: BACKUP,
        key: "nice",
        kind: "number from 0 to 19",
        default: "10",
        text: "How far the priority of the threads that read and compress is lowered (nice(2)). It weighs only within \
               a control group: for a service of its own, systemd's `CPUWeight=` says more.",
        example: "10",
    },
    Setting {
        table: BACKUP,
        key: "io_class",
        kind: "\"normal\", \"low\" or \"idle\"",
        default: "\"low\"",
        text: "The I/O priority of the same threads (ioprio_set(2)): as everybody's, the lowest of the class \
               best-effort, or only when the disk is idle. Only the I/O scheduler bfq heeds it.",
        example: "\"low\"",
    },
    Setting {
        table: BACKUP,
        key: "latency_limit",
        kind: "\"auto\", \"off\", or a time with a unit, from 0.1ms to 60s",
        default: "\"auto\"",
        text: "Ten times a second the database is asked, and when it takes longer than this to answer, the backup \
               halves its speed, down to a sixty-fourth; while it answers in time the speed comes back within seconds. \
               With \"auto\" that is twice what it takes while the backup stands still for a moment, which it does \
               every 20 seconds, and at least a millisecond more; and only while others make more than five \
               transactions a second.",
        example: "\"20ms\"",
    },
    Setting {
        table: BACKUP,
        key: "latency_query",
        kind: "SQL",
        default: "on a primary a commit that changes nothing (`pg_logical_emit_message`), on a standby `SELECT 1`",
        text: "What the database is asked. It should do what users wait for.",
        example: "\"SELECT 1\"",
    },
    Setting {
        table: BACKUP,
        key: "windows",
        kind: "list of times of the day, each with days of the week before it or for all days",
        default: "backups may run at any time",
        text: "When backups may run. Outside of them a backup is refused, unless `--any-time` is given. One that is not \
               done when the window closes ends; the next full backup goes on with what is stored.",
        example: "[\"Mon-Fri 22:00-06:00\", \"Sat,Sun 00:00-24:00\"]",
    },
    Setting {
        table: BACKUP,
        key: "time_zone",
        kind: "name of the IANA time zone database",
        default: "the time zone of the host",
        text: "The clock of `windows`.",
        example: "\"Europe/Berlin\"",
    },
    Setting {
        table: BACKUP,
        key: "compression_level",
        kind: "number from 1 to 19",
        default: "2",
        text: "zstd's level for backups. The log is always compressed at level 1.",
        example: "2",
    },
    Setting {
        table: BACKUP,
        key: "checkpoint",
        kind: "\"fast\" or \"spread\"",
        default: "\"spread\"",
        text: "How the checkpoint is made that begins a backup: \"spread\" over the time that the server gives to every \
               checkpoint (`checkpoint_completion_target` of `checkpoint_timeout`, some minutes), so that nobody \
               notices; or \"fast\", at once and with all the I/O that takes. `holdfast backup --fast` hurries one.",
        example: "\"spread\"",
    },
    Setting {
        table: BACKUP,
        key: "replay_target",
        kind: "time with a unit, from 1s to 24h",
        default: "none",
        text: "How long the log may take to replay after the newest snapshot is restored. `holdfast backup --if-due` \
               makes a backup when it would take more than half of that, and `check`, `list` and each backup say \
               whether the target is kept.",
        example: "\"30s\"",
    },
    Setting {
        table: BACKUP,
        key: "replay_rate",
        kind: "size with a unit",
        default: "\"32MiB\", which is cautious",
        text: "How much log the machine that would take over replays in a second. `holdfast restore --start` prints what \
               it measured.",
        example: "\"64MiB\"",
    },
    Setting {
        table: WAL,
        key: "interval",
        kind: "time with a unit, from 10ms to 60s",
        default: "\"250ms\"",
        text: "How long log may wait until it is sent to the repository: about what can be lost.",
        example: "\"250ms\"",
    },
    Setting {
        table: WAL,
        key: "synchronous",
        kind: "true or false",
        default: "false",
        text: "Send and confirm log at once, for a server whose `synchronous_standby_names` names this receiver, by its \
               slot's name: then a commit returns only when its log is in the repository.",
        example: "false",
    },
    Setting {
        table: RETENTION,
        key: "last",
        kind: "number of snapshots",
        default: "0",
        text: "The newest ones are kept.",
        example: "3",
    },
    Setting {
        table: RETENTION,
        key: "minimum_verified",
        kind: "number",
        default: "0",
        text: "So many snapshots of which `holdfast verify` has read everything are kept, whatever else is said. As long as there are \
               fewer, nothing goes.",
        example: "0",
    },
    Setting {
        table: RETENTION,
        key: "within",
        kind: "length of time, in hours, days or weeks",
        default: "no rule",
        text: "All that are younger are kept.",
        example: "\"48h\"",
    },
    Setting {
        table: RETENTION,
        key: "daily",
        kind: "number of days",
        default: "0",
        text: "The newest of each of so many days that have any is kept.",
        example: "7",
    },
    Setting {
        table: RETENTION,
        key: "weekly",
        kind: "number of weeks",
        default: "0",
        text: "The same of weeks, which begin on Monday.",
        example: "4",
    },
    Setting {
        table: RETENTION,
        key: "monthly",
        kind: "number of months",
        default: "0",
        text: "The same of months.",
        example: "12",
    },
    Setting {
        table: RETENTION,
        key: "yearly",
        kind: "number of years",
        default: "0",
        text: "The same of years.",
        example: "3",
    },
    Setting {
        table: RETENTION,
        key: "window",
        kind: "length of time, in hours, days or weeks",
        default: "no rule: the log since the newest snapshot is kept, and what each kept one needs",
        text: "Any moment of this last time can be recovered: the snapshots and the log for that are kept.",
        example: "\"14d\"",
    },
    Setting {
        table: RETENTION,
        key: "time_zone",
        kind: "name in the IANA database",
        default: "UTC",
        text: "Where days, weeks, months and years begin.",
        example: "\"Europe/Berlin\"",
    },
    Setting {
        table: PLACES,
        key: "copies",
        kind: "number of repositories",
        default: "1",
        text: "Every snapshot, and the log, has to be in so many of the source's repositories.",
        example: "1",
    },
    Setting {
        table: PLACES,
        key: "sites",
        kind: "number of sites",
        default: "1",
        text: "And those have to be at so many different sites.",
        example: "1",
    },
];

/// `docs/configuration.md`.
pub(crate) fn markdown() -> String {
    let mut text = String::from(
        "# Configuration\n\n<!-- Made by `holdfast generate reference`. Do not edit. -->\n\n\
         Holdfast reads one file: the one that `--config` names, else the one that the environment variable \
         `HOLDFAST_CONFIG` names, else `/etc/holdfast/holdfast.toml`, else `~/.config/holdfast/holdfast.toml`. It is \
         TOML. A key that is not listed here is refused, with its line.\n\nSizes are written with B, kB, MB, GB, TB, \
         KiB, MiB, GiB or TiB; times with ms, s, min or h.\n",
    );
    for (table, purpose) in TABLES {
        text.line(format_args!("\n## [{table}]\n\n{purpose}"));
        for setting in SETTINGS.iter().filter(|setting| setting.table == table) {
            let Setting { key, kind, default, text: meaning, example, .. } = setting;
            text.line(format_args!("\n### {key}\n\n{meaning}\n\n* Value: {kind}\n* If absent: {default}"));
            text.line(format_args!("* Example: `{key} = {example}`"));
        }
    }
    text.push_str("\n## Example\n\n```toml\n");
    text.push_str(&example());
    text.push_str("```\n");
    text
}

/// Keys that exclude `path`: commented out in the example.
const ELSEWHERE: [&str; 8] =
    ["url", "endpoint", "region", "path_style", "ca_file", "credentials_file", "ssh_key_file", "known_hosts_file"];

/// A file that has every key once.
pub(crate) fn example() -> String {
    let mut text = String::new();
    for (table, _) in TABLES {
        let table = table.replace("repository.NAME", "repository.main").replace("source.NAME", "source.chat");
        let separator = if text.is_empty() { "" } else { "\n" };
        text.line(format_args!("{separator}[{table}]"));
        let is_here = |setting: &&Setting| {
            setting.table.replace("repository.NAME", "repository.main").replace("source.NAME", "source.chat") == table
        };
        for Setting { key, example, .. } in SETTINGS.iter().filter(is_here) {
            let hash = if ELSEWHERE.contains(key) { "# " } else { "" };
            text.line(format_args!("{hash}{key} = {example}"));
        }
    }
    text
}
