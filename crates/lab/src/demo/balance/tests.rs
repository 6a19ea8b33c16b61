use super::*;

fn clean() -> Balance {
    Balance {
        ledger: Report {
            committed: 3600,
            rolled_back: 400,
            published: 3600,
            records: 3637,
            duplicates: 37,
            ..Report::default()
        },
        duplicates_recognised: 37,
        applied_once: 3600,
        orders: 1200,
        orders_in_order: 1200,
        relay_kills: 1,
        elapsed: Duration::from_millis(6_500),
        ..Balance::default()
    }
}

fn broken(balance: &Balance) -> Vec<&'static str> {
    balance.promises().iter().filter(|promise| !promise.kept).map(|promise| promise.name).collect()
}

#[test]
fn a_clean_run_keeps_every_promise() {
    let balance = clean();
    assert_eq!(broken(&balance), [""; 0]);
    assert!(balance.is_kept());
    let last = "Every promise was kept, with the relay killed once with SIGKILL, in 6.5 seconds.\n";
    assert!(balance.to_string().ends_with(last), "{balance}");
}

#[test]
fn every_kind_of_fault_breaks_the_promise_it_belongs_to() {
    type Fault = fn(&mut Balance);
    let faults: [(Fault, &str); 14] = [
        (|balance| balance.lost_commits = 1, "committed"),
        (|balance| balance.ledger.phantoms = 1, "rolled back"),
        (|balance| balance.ledger.unknown = 1, "rolled back"),
        (|balance| balance.ledger.missing = 1, "published"),
        (|balance| balance.ledger.unpublished = 1, "published"),
        (|balance| balance.ledger.mismatched = 1, "published"),
        (|balance| balance.ledger.regressed = 1, "published"),
        (|balance| balance.duplicates_recognised = 36, "duplicates seen"),
        (|balance| balance.applied_again = 1, "applied once"),
        (|balance| balance.not_applied = 1, "applied once"),
        (|balance| balance.applied_phantoms = 1, "applied once"),
        (|balance| balance.ledger.inversions = 1, "order kept"),
        (|balance| balance.ledger.wrong_partition = 1, "order kept"),
        (|balance| balance.orders_in_order = 1199, "order kept"),
    ];
    for (fault, promise) in faults {
        let mut balance = clean();
        fault(&mut balance);
        assert_eq!(broken(&balance), [promise]);
        assert!(!balance.is_kept());
        assert_eq!(balance.to_json()["kept"], false);
        let text = balance.to_string();
        assert!(text.contains("A PROMISE WAS BROKEN"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("BROKEN") && line.contains(promise)), "{text}");
    }
}

#[test]
fn no_finding_of_the_ledger_is_left_out() {
    for finding in Finding::ALL {
        let mut balance = clean();
        let count = match finding {
            Finding::Missing => &mut balance.ledger.missing,
            Finding::Phantoms => &mut balance.ledger.phantoms,
            Finding::Unknown => &mut balance.ledger.unknown,
            // Allowed, as long as each is recognised.
            Finding::Duplicates => continue,
            Finding::Inversions => &mut balance.ledger.inversions,
            Finding::Mismatched => &mut balance.ledger.mismatched,
            Finding::WrongPartition => &mut balance.ledger.wrong_partition,
            Finding::Regressed => &mut balance.ledger.regressed,
            Finding::Unpublished => &mut balance.ledger.unpublished,
        };
        *count = 1;
        assert!(!balance.is_kept(), "{finding:?} breaks no promise");
    }
}

#[test]
fn the_json_has_each_number_under_the_name_of_its_promise() {
    let json = clean().to_json();
    for (name, count) in [
        ("committed", 3600),
        ("rolled_back", 400),
        ("published", 3600),
        ("duplicates_seen", 37),
        ("applied_once", 3600),
        ("order_kept", 1200),
        ("orders", 1200),
        ("relay_kills", 1),
    ] {
        assert_eq!(json[name], count, "{name}");
    }
    assert_eq!(json["kept"], true);
    assert_eq!(json["promises"].as_array().map(Vec::len), Some(6));
    assert_eq!(json["ledger"]["records"], 3637);
}

#[test]
fn a_dead_letter_is_reported_and_breaks_nothing() {
    let mut balance = clean();
    balance.ledger.dead = 1;
    balance.ledger.published = 3599;
    assert!(balance.is_kept());
    assert!(balance.to_string().contains("of 3,600, 1 are dead letters"));
}
