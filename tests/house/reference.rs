//! Checks the parts of docs/reference that the binary prints: settings, codes, commands, metrics, SQL objects. `OUTBOX_RELAY_BLESS=1 cargo
//! test --test house` writes them again.

use std::path::Path;
use std::process::Command;

/// The markers around the part of a page that the binary prints.
const BEGIN: &str = "<!-- outbox-relay reference -->\n";
const END: &str = "<!-- end -->\n";

fn printed(page: &str) -> String {
    let mut binary = Command::new(env!("CARGO_BIN_EXE_outbox-relay"));
    let output = binary.env_clear().args(["reference", page]).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn the_reference_says_what_the_binary_says() {
    let mut stale = Vec::new();
    for page in ["settings", "codes", "commands", "metrics", "sql", "debezium"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/reference/{page}.md"));
        let found = std::fs::read_to_string(&path).expect("a page of the reference");
        let (head, rest) = found.split_once(BEGIN).unwrap_or_else(|| panic!("{page}.md lacks {BEGIN}"));
        let (_, tail) = rest.split_once(END).unwrap_or_else(|| panic!("{page}.md lacks {END}"));
        let now = format!("{head}{BEGIN}\n{}\n{END}{tail}", printed(page).trim_end());
        if found == now {
            continue;
        }
        stale.push(page);
        if std::env::var_os("OUTBOX_RELAY_BLESS").is_some() {
            std::fs::write(&path, now).expect("the page can be written");
        }
    }
    assert!(stale.is_empty(), "OUTBOX_RELAY_BLESS=1 writes docs/reference anew: {stale:?}");
}
