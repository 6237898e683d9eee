//! Which files are accepted, what is said about the others, and who beats whom.

use std::collections::BTreeMap;

use clap::Parser;
use proptest::prelude::*;

use super::*;
use crate::clock::WallTime;
use crate::tls::{Authority, Kind};

fn fixtures(folder: &str) -> BTreeMap<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config").join(folder);
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|suffix| suffix == "toml"));
    let found: BTreeMap<_, _> =
        files.map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect();
    assert!(!found.is_empty());
    found
}

#[test]
fn good_files_are_accepted() {
    for (path, text) in fixtures("good") {
        let config = Config::parse(&text, &path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(config.name, "db1");
    }
}

/// Beside each bad file lies what is said about it; `UPDATE=1` writes it anew.
#[test]
fn bad_files_are_refused_with_place_reason_and_hint() {
    for (path, text) in fixtures("bad") {
        let error = Config::parse(&text, Path::new("walship.toml")).err();
        let error = error.unwrap_or_else(|| panic!("{} was accepted", path.display()));
        let said = format!("{error}\nhint: {}\n", error.hint());
        let expected = path.with_extension("txt");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &said).unwrap();
        }
        assert_eq!(said, fs::read_to_string(&expected).unwrap_or_default(), "{}", path.display());
    }
}

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    overrides: Overrides,
}

fn load(flags: &[&str]) -> Result<Config, ConfigError> {
    let flags = std::iter::once("walship").chain(flags.iter().copied());
    Config::load(&Command::try_parse_from(flags).unwrap().overrides)
}

#[test]
fn flags_beat_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walship.toml");
    let text = "name = \"db1\"\nstore = \"/srv/store\"\n[postgres]\ndata_directory = \"/srv/data\"\n";
    fs::write(&path, text).unwrap();
    let file = path.to_str().unwrap();
    let config = load(&["--config", file]).unwrap();
    assert_eq!((config.name.as_str(), config.store.as_path()), ("db1", Path::new("/srv/store")));
    assert_eq!((config.slot.as_str(), config.listen.port), ("walship", 7432));
    assert_eq!(config.file.as_deref(), Some(path.as_path()));
    let flags =
        ["--store", "elsewhere", "--listen", "127.0.0.1:1", "--upstream", "a:1,b:2", "--max-rate", "1MiB"];
    let config = load(&[&["--config", file][..], &flags].concat()).unwrap();
    assert_eq!(config.store, std::env::current_dir().unwrap().join("elsewhere"));
    assert_eq!(config.advertise.to_string(), "127.0.0.1:1");
    assert_eq!(config.upstream.len(), 2);
    assert_eq!(config.max_rate_bytes_per_second, Some(1 << 20));
}

#[test]
fn variables_have_the_names_of_the_keys() {
    use clap::CommandFactory;
    for argument in Command::command().get_arguments() {
        let Some(long) = argument.get_long().filter(|long| *long != "help") else { continue };
        let key = long.replace('-', "_");
        assert_eq!(argument.get_env().unwrap(), format!("WALSHIP_{}", key.to_uppercase()).as_str());
        assert!(key == "config" || KEYS.iter().any(|known| known.name == key && !known.later), "{key}");
    }
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let error = load(&["--config", "/nonexistent/walship.toml"]).unwrap_err();
    assert_eq!(error.to_string(), "read /nonexistent/walship.toml");
    let error = Config::resolve(File::default(), None, &Overrides::default()).unwrap_err();
    assert_eq!(error.to_string(), "`name` is not set, and there is no configuration file");
    assert!(error.hint().contains("walship init"));
}

#[test]
fn a_link_does_not_hide_a_store_in_the_data_directory() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    std::os::unix::fs::symlink(folder.path().join("data"), folder.path().join("link")).unwrap();
    let (data, store) = (folder.path().join("data"), folder.path().join("link/store"));
    let flags = ["--name", "db1", "-D", data.to_str().unwrap(), "--store", store.to_str().unwrap()];
    let error = load(&flags).unwrap_err();
    assert!(error.to_string().contains("it lies inside the data directory"), "{error}");
}

#[test]
fn every_key_of_the_table_is_a_key_of_the_file() {
    for key in KEYS {
        let default = if key.default.is_empty() { "\"\"" } else { key.default };
        let text = match key.section {
            "" => format!("{} = {default}\n", key.name),
            section => format!("[{section}]\n{} = {default}\n", key.name),
        };
        File::parse(&text, Path::new("x")).unwrap_or_else(|e| panic!("{}: {e}", key.name));
    }
    // And the other way round: what the parser knows is in the table.
    for section in ["", "[postgres]", "[replication]", "[retention]", "[promotion]", "[hooks]"] {
        let error = File::parse(&format!("{section}\nno_such_key = 1\n"), Path::new("x")).err().unwrap();
        let text = error.to_string();
        let known = text.split("expected ").nth(1).unwrap().split('`').skip(1).step_by(2);
        let sections = ["postgres", "replication", "retention", "promotion", "hooks"];
        for name in known.filter(|name| !sections.contains(name)) {
            assert!(KEYS.iter().any(|key| key.name == name), "{name} is not in the table");
        }
    }
}

fn template() -> Template {
    let chosen = Overrides {
        name: Some("db1".parse().unwrap()),
        store: Some("/var/lib/walship/db1".into()),
        data_directory: Some("/var/lib/postgresql/15/main".into()),
        advertise: Some("db1.example:7432".parse().unwrap()),
        conninfo: Some("host=/run/postgresql dbname=postgres".parse().unwrap()),
        store_max_bytes: Some(Size(5 << 30)),
        ..Overrides::default()
    };
    Template { chosen, start_command: None }
}

#[test]
fn the_template_explains_every_key_and_parses_back() {
    let (text, config) = template().render(Path::new("walship.toml")).unwrap();
    assert_eq!(config.advertise.to_string(), "db1.example:7432");
    assert_eq!((config.store_max_bytes, text.contains("store_max_bytes = \"5GiB\"")), (Some(5 << 30), true));
    for key in KEYS {
        assert_eq!(text.contains(&format!("{} = ", key.name)), !key.later, "{}", key.name);
    }
    // What stands behind a # is the default: taking the # away changes nothing.
    let open = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.split_once(" = ").is_some_and(|(name, _)| !name.contains(' ')) => rest,
        _ => line,
    });
    let open = open.collect::<Vec<_>>().join("\n");
    assert_ne!(open, text);
    assert_eq!(Config::parse(&open, Path::new("walship.toml")).unwrap(), config);
    assert!(text.lines().all(|line| line.len() <= 110), "{text}");
}

proptest! {
    #[test]
    fn any_size_reads_back(number in 1u64..1 << 20, bits in 0u32..44) {
        let size = Size(number << bits);
        prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
    }

    #[test]
    fn any_path_survives_the_template(store in "/[^\u{0}/]{1,30}", command in "\\PC{1,40}|[\u{1}-\u{20}\"\\\\]{1,9}") {
        let chosen = Overrides {
            store: Some(PathBuf::from(&store)),
            upstream: vec!["[::1]:7432".parse().unwrap(), "db3:1".parse().unwrap()],
            http_listen: Some("127.0.0.1:7480".parse().unwrap()),
            ..template().chosen
        };
        prop_assume!(!matches!(store.as_str(), "/." | "/.." | "/var"));
        let template = Template { chosen: chosen.clone(), start_command: Some(command.clone()) };
        let (_, config) = template.render(Path::new("walship.toml")).unwrap();
        prop_assert_eq!(&config.store, Path::new(&store));
        prop_assert_eq!(config.postgres.start_command, Some(command));
        prop_assert_eq!(config.upstream, chosen.upstream);
        prop_assert_eq!(config.http_listen, chosen.http_listen);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[a-z_=\\[\\]\"\n .0-9é]{0,200}") {
        let _ = Config::parse(&text, Path::new("walship.toml"));
    }
}

fn bundle_text() -> String {
    let authority = Authority::create("db1", WallTime::now()).unwrap();
    let issued = authority.issue("db2", Kind::Node, WallTime::now()).unwrap();
    let addresses = vec!["db1.example:7432".parse().unwrap()];
    let ca = authority.certificate_pem();
    Bundle::new(issued, ca, addresses, Some(u64::MAX)).unwrap().render().unwrap()
}

#[test]
fn a_bundle_makes_a_node() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db2.join");
    fs::write(&path, bundle_text()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(bundle::is_open_to_others(&path));
    let bundle = Bundle::read(&path).unwrap();
    assert_eq!((bundle.identity.name.as_str(), bundle.system_identifier), ("db2", Some(u64::MAX)));
    assert!(bundle.is_for_a_node() && bundle.credentials().is_ok());
    let files = crate::tls::Files::in_folder(&folder.path().join("store/tls"));
    bundle.install(&files).unwrap();
    let loaded = crate::tls::Credentials::load(&files, WallTime::now()).unwrap();
    assert_eq!(*loaded.identity(), bundle.identity);
}

#[test]
fn a_bundle_that_was_changed_or_cut_is_refused() {
    let text = bundle_text();
    let other = bundle_text();
    let key_of = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["key"].to_string()
    };
    let cases = [
        (text[..text.len() / 2].to_owned(), "EOF while parsing"),
        (String::new(), "EOF while parsing"),
        ("[]".to_owned(), "invalid length"),
        (text.replace("_bundle\": 1", "_bundle\": 2"), "it has version 2, not 1"),
        (text.replace("\"name\": \"db2\"", "\"name\": \"db3\""), "its certificate was made for someone else"),
        (
            text.replace("\"kind\": \"node\"", "\"kind\": \"reader\""),
            "its certificate was made for someone else",
        ),
        (text.replace("db1.example:7432", "db1.example"), "`db1.example` is not an address"),
        (
            text.replace(&key_of(&text), &key_of(&other)),
            "the key in db2.join does not belong to the certificate",
        ),
    ];
    for (text, reason) in cases {
        let error = Bundle::parse(&text, "db2.join").err().unwrap();
        let source = std::error::Error::source(&error).map(|e| e.to_string()).unwrap_or_default();
        let said = format!("{error}: {source}");
        assert!(said.starts_with("db2.join is not a usable join bundle") && said.contains(reason), "{said}");
        assert!(error.hint().contains("walship invite"));
    }
}
