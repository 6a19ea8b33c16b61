use super::*;

fn clean() -> Reconciliation {
    Reconciliation {
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
        ..Reconciliation::default()
    }
}

fn broken(reconciliation: &Reconciliation) -> Vec<&'static str> {
    reconciliation.promises().iter().filter(|promise| !promise.kept).map(|promise| promise.name).collect()
}

#[test]
fn a_clean_run_keeps_every_promise() {
    let reconciliation = clean();
    assert_eq!(broken(&reconciliation), [""; 0]);
    assert!(reconciliation.is_kept());
    let last = "Every promise was kept, with the relay killed once with SIGKILL, in 6.5 seconds.\n";
    assert!(reconciliation.to_string().ends_with(last), "{reconciliation}");
}

#[test]
fn every_kind_of_fault_breaks_the_promise_it_belongs_to() {
    type Fault = fn(&mut Reconciliation);
    let faults: [(Fault, &str); 14] = [
        (|reconciliation| reconciliation.lost_commits = 1, "committed"),
        (|reconciliation| reconciliation.ledger.phantoms = 1, "rolled back"),
        (|reconciliation| reconciliation.ledger.unknown = 1, "rolled back"),
        (|reconciliation| reconciliation.ledger.missing = 1, "published"),
        (|reconciliation| reconciliation.ledger.unpublished = 1, "published"),
        (|reconciliation| reconciliation.ledger.mismatched = 1, "published"),
        (|reconciliation| reconciliation.ledger.regressed = 1, "published"),
        (|reconciliation| reconciliation.duplicates_recognised = 36, "duplicates seen"),
        (|reconciliation| reconciliation.applied_again = 1, "applied once"),
        (|reconciliation| reconciliation.not_applied = 1, "applied once"),
        (|reconciliation| reconciliation.applied_phantoms = 1, "applied once"),
        (|reconciliation| reconciliation.ledger.inversions = 1, "order kept"),
        (|reconciliation| reconciliation.ledger.wrong_partition = 1, "order kept"),
        (|reconciliation| reconciliation.orders_in_order = 1199, "order kept"),
    ];
    for (fault, promise) in faults {
        let mut reconciliation = clean();
        fault(&mut reconciliation);
        assert_eq!(broken(&reconciliation), [promise]);
        assert!(!reconciliation.is_kept());
        assert_eq!(reconciliation.to_json()["kept"], false);
        let text = reconciliation.to_string();
        assert!(text.contains("A PROMISE WAS BROKEN"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("BROKEN") && line.contains(promise)), "{text}");
    }
}

#[test]
fn no_finding_of_the_ledger_is_left_out() {
    for finding in Finding::ALL {
        let mut reconciliation = clean();
        let count = match finding {
            Finding::Missing => &mut reconciliation.ledger.missing,
            Finding::Phantoms => &mut reconciliation.ledger.phantoms,
            Finding::Unknown => &mut reconciliation.ledger.unknown,
            // Duplicates are allowed as long as each is recognised.
            Finding::Duplicates => continue,
            Finding::Inversions => &mut reconciliation.ledger.inversions,
            Finding::Mismatched => &mut reconciliation.ledger.mismatched,
            Finding::WrongPartition => &mut reconciliation.ledger.wrong_partition,
            Finding::Regressed => &mut reconciliation.ledger.regressed,
            Finding::Unpublished => &mut reconciliation.ledger.unpublished,
        };
        *count = 1;
        assert!(!reconciliation.is_kept(), "{finding:?} breaks no promise");
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
    let mut reconciliation = clean();
    reconciliation.ledger.dead = 1;
    reconciliation.ledger.published = 3599;
    assert!(reconciliation.is_kept());
    assert!(reconciliation.to_string().contains("of 3,600, 1 are dead letters"));
}
