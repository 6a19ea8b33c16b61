use super::*;

fn clean() -> Counts {
    Counts {
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
        ..Counts::default()
    }
}

fn broken(counts: &Counts) -> Vec<&'static str> {
    counts.promises().iter().filter(|promise| !promise.kept).map(|promise| promise.name).collect()
}

#[test]
fn a_clean_run_keeps_every_promise() {
    assert_eq!(broken(&clean()), [""; 0]);
    let counts: Vec<_> = clean().promises().iter().map(|promise| promise.count).collect();
    assert_eq!(counts, [3600, 400, 3600, 37, 3600, 1200]);
}

#[test]
fn every_kind_of_fault_breaks_the_promise_it_belongs_to() {
    type Fault = fn(&mut Counts);
    let faults: [(Fault, &str); 14] = [
        (|counts| counts.lost_commits = 1, "committed"),
        (|counts| counts.ledger.phantoms = 1, "rolled back"),
        (|counts| counts.ledger.unknown = 1, "rolled back"),
        (|counts| counts.ledger.missing = 1, "published"),
        (|counts| counts.ledger.unpublished = 1, "published"),
        (|counts| counts.ledger.mismatched = 1, "published"),
        (|counts| counts.ledger.regressed = 1, "published"),
        (|counts| counts.duplicates_recognised = 36, "duplicates seen"),
        (|counts| counts.applied_again = 1, "applied once"),
        (|counts| counts.not_applied = 1, "applied once"),
        (|counts| counts.applied_phantoms = 1, "applied once"),
        (|counts| counts.ledger.inversions = 1, "order kept"),
        (|counts| counts.ledger.wrong_partition = 1, "order kept"),
        (|counts| counts.orders_in_order = 1199, "order kept"),
    ];
    for (fault, promise) in faults {
        let mut counts = clean();
        fault(&mut counts);
        assert_eq!(broken(&counts), [promise]);
    }
}

#[test]
fn no_finding_of_the_ledger_is_left_out() {
    for finding in Finding::ALL {
        let mut counts = clean();
        let count = match finding {
            Finding::Missing => &mut counts.ledger.missing,
            Finding::Phantoms => &mut counts.ledger.phantoms,
            Finding::Unknown => &mut counts.ledger.unknown,
            // Duplicates are allowed as long as each is recognised.
            Finding::Duplicates => continue,
            Finding::Inversions => &mut counts.ledger.inversions,
            Finding::Mismatched => &mut counts.ledger.mismatched,
            Finding::WrongPartition => &mut counts.ledger.wrong_partition,
            Finding::Regressed => &mut counts.ledger.regressed,
            Finding::Unpublished => &mut counts.ledger.unpublished,
        };
        *count = 1;
        assert_eq!(broken(&counts).len(), 1, "{finding:?} breaks no promise");
    }
}

#[test]
fn a_dead_letter_is_reported_and_breaks_nothing() {
    let mut counts = clean();
    counts.ledger.dead = 1;
    counts.ledger.published = 3599;
    assert_eq!(broken(&counts), [""; 0]);
    assert!(counts.promises()[2].words.starts_with("of 3,600, 1 are dead letters"));
}
