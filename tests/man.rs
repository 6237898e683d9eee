//! The manual: pages in `man/` that are written from the same definitions as the help and the configuration.
//!
//! `UPDATE=1 cargo test --test man` writes them anew. The other tests hold the help itself to some rules, since the
//! pages are no better than it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory, Parser};
use clap_mangen::Man;
use walship::cli::Cli;
use walship::config::{Config, KEYS, Key, SEARCH_PATH};

/// Lines of a help that a page prints as they are: it indents them further, and a terminal has 80 columns.
const COLUMNS_MAX: usize = 75;

/// What a configuration may look like; a test reads it.
const EXAMPLE: &str = r#"name = "db1"
store = "/var/lib/walship/db1"
listen = "0.0.0.0:7432"
advertise = "db1.example:7432"

[postgres]
data_directory = "/var/lib/postgresql/15/main"
conninfo = "host=/run/postgresql user=walship dbname=postgres"

[retention]
store_max_bytes = "50GiB"
"#;

/// The program, and each of its commands, as clap completes them.
fn program() -> Command {
    let mut program = Cli::command();
    program.build();
    program
}

fn commands() -> Vec<Command> {
    let program = program();
    let commands = program.get_subcommands().filter(|command| !command.is_hide_set());
    commands.cloned().chain([program.clone()]).collect()
}

/// All pages by their file names.
fn pages() -> BTreeMap<String, String> {
    let page = |command: &Command| {
        let name = command.get_display_name().unwrap_or("walship");
        (format!("{name}.1"), page_of(name, command))
    };
    let configuration = ("walship.toml.5".to_owned(), configuration_page());
    commands().iter().map(page).chain([configuration]).collect()
}

fn page_of(name: &str, command: &Command) -> String {
    // What the short help leaves out has its place here.
    let man = Man::new(command.clone().mut_args(|flag| flag.hide_short_help(false)));
    let mut generated = Vec::new();
    man.render_name_section(&mut generated).unwrap();
    man.render_synopsis_section(&mut generated).unwrap();
    let synopsis_end = generated.len();
    man.render_options_section(&mut generated).unwrap();
    if command.has_subcommands() {
        man.render_subcommands_section(&mut generated).unwrap();
    }
    let options = tidy(&generated.split_off(synopsis_end));
    let others: Vec<String> = match command.has_subcommands() {
        true => command.get_subcommands().map(|one| format!("walship-{}(1)", one.get_name())).collect(),
        false => vec!["walship(1)".to_owned()],
    };
    [
        title(name, "1"),
        tidy(&generated),
        description(command),
        options,
        sections(&after_help(command)),
        see_also(&[&others[..], &["walship.toml(5)".to_owned()]].concat()),
    ]
    .concat()
}

/// The title, and the name that clap_mangen has for a quotation mark.
fn title(name: &str, section: &str) -> String {
    let title = roff(&name.to_uppercase());
    format!(".ds Aq \\(aq\n.TH {title} {section} \"\" \"walship\" \"walship manual\"\n")
}

/// What clap_mangen made, without its definitions before every section and with characters that can be copied.
fn tidy(generated: &[u8]) -> String {
    let text = std::str::from_utf8(generated).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with(".ie ") && !line.starts_with(".el "));
    lines.map(|line| line.trim_end().replace('`', "\\(ga") + "\n").collect()
}

/// The long help without its title, which the name section has.
fn description(command: &Command) -> String {
    let long = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    let paragraphs: Vec<String> = long.split("\n\n").skip(1).map(|text| roff(text) + "\n").collect();
    format!(".SH DESCRIPTION\n{}", paragraphs.join(".PP\n"))
}

fn after_help(command: &Command) -> String {
    command.get_after_long_help().map(ToString::to_string).unwrap_or_default()
}

/// The end of a long help as sections: a line `Heading:` at the margin begins one, its lines stay as they are.
fn sections(text: &str) -> String {
    let mut page = String::new();
    let mut is_open = false;
    for line in text.trim_end().lines() {
        match line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
            Some(heading) => {
                let heading = if heading == "Exit codes" { "EXIT STATUS" } else { heading };
                let end = if is_open { ".fi\n" } else { "" };
                page.push_str(&format!("{end}.SH {}\n.nf\n", quoted(&heading.to_uppercase())));
                is_open = true;
            }
            None => page.push_str(&format!("{}\n", roff(line.strip_prefix("  ").unwrap_or(line)))),
        }
    }
    if is_open { page + ".fi\n" } else { page }
}

fn see_also(pages: &[String]) -> String {
    format!(".SH \"SEE ALSO\"\n{}\n", roff(&pages.join(", ")))
}

fn configuration_page() -> String {
    let mut page = title("walship.toml", "5");
    page.push_str(&format!(
        ".SH NAME\nwalship.toml \\- the configuration of a walship node\n.SH DESCRIPTION\n{}\n.PP\n{}\n",
        roff(&format!(
            "walship reads the file that --config names, else $WALSHIP_CONFIG, else {}, else {}. It is TOML. A flag \
             beats a WALSHIP_ variable, which beats the file. Keys that walship does not know are refused, with line \
             and column.",
            SEARCH_PATH[0], SEARCH_PATH[1]
        )),
        roff(
            "`walship init` and `walship standby --join` write one with every key in it. Paths are absolute. Sizes \
             are written like 512, 64MiB or 2GB."
        )
    ));
    let mut section = "?";
    for key in KEYS {
        if key.section != section {
            section = key.section;
            let heading =
                if section.is_empty() { "TOP OF THE FILE".to_owned() } else { format!("[{section}]") };
            page.push_str(&format!(".SH {}\n", quoted(&heading)));
        }
        page.push_str(&key_of(key));
    }
    page.push_str(&environment());
    page.push_str(&format!(
        ".SH EXAMPLE\n.nf\n{}.fi\n",
        EXAMPLE.lines().map(|line| roff(line) + "\n").collect::<String>()
    ));
    page + &see_also(&["walship(1)".to_owned(), "walship-init(1)".to_owned(), "walship-check(1)".to_owned()])
}

fn key_of(key: &Key) -> String {
    let default = match key.default {
        "" => String::new(),
        default => format!("[default: {default}]"),
    };
    let later = if key.later { " This version takes nothing but the default." } else { "" };
    format!(
        ".TP\n\\fB{}\\fR {}\n{}\n",
        roff(key.name),
        roff(&default),
        roff(&format!("{}{later}", key.meaning))
    )
}

fn environment() -> String {
    let program = program();
    let mut text = ".SH ENVIRONMENT\n".to_owned();
    let arguments = program.find_subcommand("standby").unwrap().get_arguments();
    for (argument, variable) in arguments.filter_map(|argument| Some((argument, argument.get_env()?))) {
        let (variable, flag) = (variable.to_str().unwrap(), argument.get_long().unwrap());
        text.push_str(&format!(".TP\n\\fB{}\\fR\nas --{flag}\n", roff(variable)).replace("--", "\\-\\-"));
    }
    text
}

/// One line of text as roff takes it.
fn roff(line: &str) -> String {
    let mut escaped = line.replace('\\', "\\e");
    for (character, name) in [("-", "\\-"), ("'", "\\(aq"), ("`", "\\(ga"), ("~", "\\(ti"), ("^", "\\(ha")] {
        escaped = escaped.replace(character, name);
    }
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}

fn quoted(heading: &str) -> String {
    format!("\"{}\"", roff(heading))
}

#[test]
fn the_manual_says_what_the_help_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let pages = pages();
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(&folder).unwrap();
        pages.iter().for_each(|(name, page)| fs::write(folder.join(name), page).unwrap());
    }
    let is_page =
        |path: &PathBuf| path.extension().is_some_and(|extension| extension == "1" || extension == "5");
    let found = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(is_page);
    let found: BTreeMap<String, String> = found
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(path).unwrap())
        })
        .collect();
    let names = |pages: &BTreeMap<String, String>| pages.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&pages), "remove the page of a command that is gone");
    let stale: Vec<&String> = pages.keys().filter(|name| found.get(*name) != pages.get(*name)).collect();
    assert!(stale.is_empty(), "{stale:?} are stale: UPDATE=1 cargo test --test man");
}

#[test]
fn the_example_is_a_configuration() {
    let config = Config::parse(EXAMPLE, Path::new("walship.toml")).unwrap();
    assert_eq!(config.name, "db1");
}

#[test]
fn every_command_is_explained() {
    Cli::command().debug_assert();
    for command in commands() {
        let name = command.get_display_name().unwrap_or("walship").to_owned();
        let about = command.get_about().unwrap_or_else(|| panic!("{name} has no help")).to_string();
        assert!(
            about.len() <= 80 && about.starts_with(char::is_uppercase) && !about.ends_with('.'),
            "{name}: {about}"
        );
        let long = command
            .get_long_about()
            .unwrap_or_else(|| panic!("{name} says no more than {about:?}"))
            .to_string();
        let (title, text) = long.split_once("\n\n").unwrap();
        assert_eq!(title, about, "the first paragraph is a title, without a full stop");
        for paragraph in text.split("\n\n") {
            assert!(paragraph.ends_with('.'), "{name}: a paragraph ends without a full stop: {paragraph:?}");
        }
        let after = after_help(&command);
        assert!(after.starts_with("Exit codes:\n  0  "), "{name}: {after}");
        assert!(after.contains("\nExamples:\n") && after.ends_with('\n'), "{name}: {after}");
        let wide: Vec<&str> = after.lines().filter(|line| line.chars().count() > COLUMNS_MAX).collect();
        assert!(wide.is_empty(), "{name}: {wide:#?}");
    }
}

#[test]
fn every_flag_is_explained() {
    for command in commands() {
        for argument in command.get_arguments() {
            let what = format!("{} {}", command.get_name(), argument.get_id());
            let help = argument.get_help().unwrap_or_else(|| panic!("{what} has no help")).to_string();
            assert!(help.starts_with(char::is_uppercase) && !help.ends_with('.'), "{what}: {help}");
            check_value(&what, argument);
        }
    }
}

fn check_value(what: &str, argument: &Arg) {
    if !argument.get_action().takes_values() {
        return;
    }
    let names = argument.get_value_names().unwrap_or_default();
    assert_eq!(names.len(), 1, "{what} has no value_name");
    // clap makes one of the flag's own name when nobody gives one.
    let own = argument.get_id().as_str().to_uppercase();
    let is_made = names[0].as_str() == own && argument.get_long().is_some() && own.contains('_');
    assert!(!is_made, "{what}: {} is no value_name", names[0]);
    for value in argument.get_possible_values() {
        let needs_help = argument.get_id() != "shell";
        assert!(!needs_help || value.get_help().is_some(), "{what} {} has no help", value.get_name());
    }
}

#[test]
fn every_example_is_understood() {
    let mut tried = 0;
    for command in commands() {
        let text = after_help(&command).replace("\\\n", " ");
        for line in text.lines().map(str::trim).filter(|line| line.starts_with("walship ")) {
            let words = words(line.split(['>', '<']).next().unwrap());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
}

/// The words of a simple command line, as a shell sees them.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for (index, part) in line.split('\'').enumerate() {
        match index % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}
