//! Style as a test: reads the tree as text and names what breaks a rule, with what to do instead.
//!
//! Tests are exempt from what is said about code: what follows `#[cfg(test)] mod tests {`, and files `tests.rs`. Each
//! rule has a test below that plants a violation.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Imports go from a higher number to a lower one.
const LAYERS: [(u8, &[&str]); 5] = [
    (4, &["cli", "demo"]),
    (3, &["daemon"]),
    (
        2,
        &[
            "capture", "backup", "ship", "receive", "restore", "feed", "ack", "promote", "report", "capsule",
            "rewind",
        ],
    ),
    (1, &["store", "link", "config"]),
    (0, &["pg", "policy", "vitals", "tls", "durable", "clock", "fault", "failpoint"]),
];

/// Imports within a layer: everything in layer 0 may use `pg`; the rest is listed, importer first.
const EXCEPTIONS: [(&str, &str); 3] = [
    ("vitals", "clock"), // a moment is one of its facts
    ("tls", "clock"),    // certificates are issued and expire
    ("cli", "demo"),     // `walship demo` is a command like any other
];

/// Lines of a file above its tests, and of one function.
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// File and folder names that say nothing.
const BANNED_NAMES: [&str; 6] = ["util", "utils", "common", "helper", "helpers", "misc"];

/// What the top level of the repository holds.
const TOP_LEVEL: [&str; 14] = [
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".git",
    ".gitignore",
    ".rustfmt.toml",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "fixtures",
    "man",
    "src",
    "tests",
];

/// A text that code may not hold, outside some modules, and what to write instead.
struct Banned {
    texts: &'static [&'static str],
    /// Paths below `src/` that these begin with may.
    allowed_in: &'static [&'static str],
    instead: &'static str,
}

const BANNED: [Banned; 9] = [
    Banned {
        texts: &[".unwrap()", ".expect("],
        allowed_in: &[],
        instead: "return an error; for a poisoned lock write unwrap_or_else(PoisonError::into_inner)",
    },
    Banned { texts: &["dbg!(", "todo!(", "unimplemented!("], allowed_in: &[], instead: "finish it" },
    Banned {
        texts: &["unbounded_channel", "mpsc::channel()", "block_in_place"],
        allowed_in: &[],
        instead: "a bounded channel; spawn_blocking for file work",
    },
    Banned {
        texts: &["SystemTime::now", "Timestamp::now", "Zoned::now"],
        allowed_in: &["clock"],
        instead: "clock::WallTime::now(), or Instant for durations",
    },
    Banned {
        texts: &["print!(", "println!("],
        allowed_in: &["main", "cli", "report/table"],
        instead: "tracing in a daemon; a value that cli prints elsewhere",
    },
    Banned {
        texts: &["fs::rename", "renameat", ".sync_all()", ".sync_data()", "fsync(", "fdatasync("],
        allowed_in: &["durable"],
        instead: "a function of durable",
    },
    Banned {
        texts: &["ClientConfig::builder", "ServerConfig::builder"],
        allowed_in: &["tls"],
        instead: "a configuration from tls",
    },
    Banned {
        texts: &["process::exit", "process::abort"],
        allowed_in: &["cli", "failpoint"],
        instead: "return an error; main turns it into an exit code",
    },
    Banned { texts: &["::*;"], allowed_in: &[], instead: "name what is imported" },
];

/// Marks of unfinished work, in code, comments and tests.
const MARKS: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// All that is wrong with one file; `path` is relative to the repository, such as `src/store/mod.rs`.
fn violations(path: &str, text: &str) -> Vec<String> {
    let above_tests = &text[..text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(text.len())];
    let code = without_comments_and_strings(above_tests);
    let mut found = of_the_file(path, text, above_tests);
    if let Some(module) = path.strip_prefix("src/").filter(|module| !module.ends_with("/tests.rs")) {
        let module = module.trim_end_matches(".rs").trim_end_matches("/mod");
        found.extend(of_imports(module, &code));
        found.extend(of_calls(module, &code));
        found.extend(of_functions(&code));
    }
    found.into_iter().map(|what| format!("{path}: {what}")).collect()
}

fn of_the_file(path: &str, text: &str, above_tests: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//! ") {
        found.push("does not open with `//!`: say what it holds, then what always holds".to_owned());
    }
    let lines = above_tests.lines().count();
    if lines > FILE_LINES_MAX {
        found.push(format!("{lines} lines above its tests, {FILE_LINES_MAX} at most: split it"));
    }
    for name in path.split('/').map(|part| part.trim_end_matches(".rs")).filter(|n| BANNED_NAMES.contains(n))
    {
        found.push(format!("`{name}` says nothing: name it for what it holds"));
    }
    for mark in MARKS.into_iter().filter(|mark| text.contains(mark)) {
        found.push(format!("`{mark}`: finish it, or write an issue"));
    }
    found
}

fn of_imports(module: &str, code: &str) -> Vec<String> {
    let own = module.split('/').next().unwrap_or_default();
    if matches!(own, "lib" | "main") {
        return Vec::new();
    }
    let layer_of =
        |name: &str| LAYERS.iter().find(|(_, names)| names.contains(&name)).map(|(layer, _)| *layer);
    let Some(own_layer) = layer_of(own) else {
        return vec![format!("`{own}` has no layer: give it one in tests/tidy.rs")];
    };
    let allowed = |other: &str| match layer_of(other) {
        None => true, // an item of lib.rs; a module without a layer is named by its own file
        Some(layer) if layer == own_layer => {
            other == own || (layer == 0 && other == "pg") || EXCEPTIONS.contains(&(own, other))
        }
        Some(layer) => layer < own_layer,
    };
    let depth = module.split('/').count();
    let roots = ["crate::".to_owned(), "super::".repeat(depth)];
    let imported: BTreeSet<&str> = roots.iter().flat_map(|root| names_after(code, root)).collect();
    let upward = imported.into_iter().filter(|other| !allowed(other));
    upward.map(|other| format!("`{own}` may not import `{other}`: imports go down a layer")).collect()
}

/// The names that follow a path such as `crate::` in code: one, or the first of each in `{…}`.
fn names_after<'a>(code: &'a str, root: &str) -> Vec<&'a str> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let first_name = |text: &'a str| &text[..text.find(|c| !is_name(c)).unwrap_or(text.len())];
    let mut names = Vec::new();
    for (at, _) in code.match_indices(root) {
        if code[..at].ends_with(|c| is_name(c) || c == ':') {
            continue; // part of a longer path
        }
        let rest = &code[at + root.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.push(first_name(rest));
            continue;
        };
        let mut depth = 0;
        let mut starts = vec![0];
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts.push(i + 1),
                _ => {}
            }
        }
        names.extend(starts.into_iter().map(|start| first_name(group[start..].trim_start())));
    }
    names
}

fn of_calls(module: &str, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for Banned { texts, allowed_in, instead } in &BANNED {
        let allowed = allowed_in.iter().any(|path| module.starts_with(path));
        for text in texts.iter().filter(|text| !allowed && code.contains(**text)) {
            found.push(format!("`{text}` is not for here: {instead}"));
        }
    }
    found
}

/// Functions as rustfmt leaves them: from the line with `fn` to the closing brace in the same column.
fn of_functions(code: &str) -> Vec<String> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let words: Vec<&str> = line.split_whitespace().take_while(|word| *word != "fn").collect();
        let modifiers = ["pub", "pub(crate)", "pub(super)", "async", "const"];
        if words.len() == line.split_whitespace().count()
            || words.iter().any(|word| !modifiers.contains(word))
        {
            continue;
        }
        let close = format!("{indent}}}");
        let length = lines[start..].iter().position(|line| *line == close).map_or(0, |end| end + 1);
        if length > FUNCTION_LINES_MAX && !line.ends_with("}") {
            let name = line.trim().trim_end_matches('{').trim();
            found.push(format!("`{name}` has {length} lines, {FUNCTION_LINES_MAX} at most: split it"));
        }
    }
    found
}

/// Code with every comment and every text literal made blank, line for line.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let skipped = skipped_bytes(rest, code.chars().next_back());
        if skipped == 0 {
            code.push(next);
            rest = &rest[next.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    code
}

/// How many bytes at the start of `rest` are a comment or a literal.
fn skipped_bytes(rest: &str, before: Option<char>) -> usize {
    let until =
        |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    let in_a_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let hashes = rest.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len());
    if let Some(hashes) = hashes.filter(|hashes| !in_a_name && rest[1 + hashes..].starts_with('"')) {
        return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
    }
    if rest.starts_with('"') {
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        return end.map_or(rest.len(), |(at, _)| at + 1);
    }
    // A character; what has no closing quote there is a lifetime.
    let is_quoted = |length: usize| rest.chars().nth(length) == Some('\'');
    if !rest.starts_with('\'') {
        0
    } else if rest.starts_with("'\\") {
        until(3, "'")
    } else if is_quoted(2) {
        rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at)
    } else {
        0
    }
}

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "tests"] {
        for entry in walkdir::WalkDir::new(root.join(folder)).sort_by_file_name() {
            let entry = entry.unwrap();
            if entry.path().extension().is_some_and(|extension| extension == "rs") {
                let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap();
                found.extend(violations(path, &fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }
    let ignored = fs::read_to_string(root.join(".gitignore")).unwrap();
    for entry in fs::read_dir(root).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !TOP_LEVEL.contains(&name.as_str()) && !ignored.lines().any(|line| line.trim_matches('/') == name)
        {
            found.push(format!("{name}: does not belong at the top level"));
        }
    }
    assert!(found.is_empty(), "{} rules broken:\n{}\n", found.len(), found.join("\n"));
}

/// Checks that the one violation in a file is named, by a part of what is said about it.
fn check(path: &str, text: &str, expected: &str) {
    let found = violations(path, text);
    assert!(found.len() == 1 && found[0].contains(expected), "{expected:?} expected: {found:#?}");
}

/// Checks that nothing is said about a file.
fn check_tidy(path: &str, text: &str) {
    assert_eq!(violations(path, text), [""; 0]);
}

#[test]
fn an_upward_import_is_named() {
    check("src/store/mod.rs", "//! A.\nuse crate::ship::Ship;\n", "`store` may not import `ship`");
    check(
        "src/ship/pace.rs",
        "//! A.\nuse crate::{pg::Lsn, feed::{A, B}};\n",
        "`ship` may not import `feed`",
    );
    check(
        "src/link/conn.rs",
        "//! A.\nfn f(c: &super::super::config::Config) {}\n",
        "may not import `config`",
    );
    check("src/clock.rs", "//! A.\nuse super::durable;\n", "`clock` may not import `durable`");
    check("src/pg/lsn.rs", "//! A.\nuse crate::vitals::Vitals;\n", "`pg` may not import `vitals`");
    check("src/report/lag.rs", "//! A.\nfn f() { crate::promote::plan() }\n", "may not import `promote`");
    check("src/extra.rs", "//! A.\n", "`extra` has no layer");
    check(
        "src/pg/mod.rs",
        "//! A.\n#[cfg(test)]\nmod tests;\nuse crate::link;\n",
        "`pg` may not import `link`",
    );
}

#[test]
fn a_downward_import_is_fine() {
    check_tidy(
        "src/ship/mod.rs",
        "//! A.\nuse crate::store::Store;\nuse crate::{pg::{Lsn, History}, link};\n",
    );
    check_tidy("src/vitals.rs", "//! A.\nuse crate::clock::WallTime;\nuse crate::pg::Lsn;\n");
    check_tidy("src/store/index.rs", "//! A.\nuse super::segment;\nuse crate::store::state;\n");
    check_tidy("src/cli/demo.rs", "//! A.\nuse crate::demo::story;\n");
    check_tidy("src/store/mod.rs", "//! A.\n// crate::ship\nconst A: &str = \"crate::ship\";\n");
    check_tidy("src/store/mod.rs", "//! A.\n\n#[cfg(test)]\nmod tests {\n    use crate::ship::Ship;\n}\n");
    check_tidy("src/store/tests.rs", "//! A.\nuse super::*;\nuse crate::ship::Ship;\n");
}

#[test]
fn a_file_without_a_head_and_a_long_one_are_named() {
    check("src/clock.rs", "use std::fmt;\n", "does not open with `//!`");
    check("tests/it/main.rs", "// A.\n", "does not open with `//!`");
    let long = format!("//! A.\n{}", "const A: u8 = 0;\n".repeat(FILE_LINES_MAX));
    check("src/clock.rs", &long, "501 lines above its tests");
    check_tidy("src/clock.rs", &long.replacen("const", "\n#[cfg(test)]\nmod tests {}\nconst", 1));
}

#[test]
fn a_long_function_is_named() {
    let function = |lines| {
        format!(
            "//! A.\nimpl A {{\n    pub async fn long(\n    ) {{\n{}    }}\n}}\n",
            "        a();\n".repeat(lines)
        )
    };
    check("src/clock.rs", &function(68), "`pub async fn long(` has 71 lines");
    check_tidy("src/clock.rs", &function(67));
}

#[test]
fn a_name_that_says_nothing_is_named() {
    check("src/store/utils.rs", "//! A.\n", "`utils` says nothing");
    check("tests/it/common/mod.rs", "//! A.\n", "`common` says nothing");
}

#[test]
fn a_mark_of_unfinished_work_is_named() {
    for mark in MARKS {
        check("src/clock.rs", &format!("//! A.\n// {mark}: later\n"), mark);
    }
}

#[test]
fn each_banned_call_is_named_outside_its_place() {
    for Banned { texts, allowed_in, .. } in &BANNED {
        for text in *texts {
            let code = format!("//! A.\nfn f() {{ {text}\n}}\n");
            // `println!(` also holds `print!(` and the like, so the first of several is looked for.
            let found = violations("src/store/mod.rs", &code);
            assert!(found.iter().any(|what| what.contains(text)), "{text}: {found:?}");
            check_tidy("src/store/mod.rs", &format!("//! A.\n// {text}\nconst A: &str = \"{text}\";\n"));
            for place in *allowed_in {
                check_tidy(&format!("src/{place}.rs"), &code);
            }
        }
    }
}

#[test]
fn literals_and_comments_are_blanked_and_lifetimes_are_not() {
    let text = "f('\"', '\\'', \"a\\\\\"); // g\nr#\"h\"i\"# <'a, 'b> /* j\nk */ l 'é' m";
    let code = without_comments_and_strings(text);
    assert_eq!(code.lines().count(), text.lines().count());
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["f(", ",", ",", ");", "<'a,", "'b>", "l", "m"]);
}
