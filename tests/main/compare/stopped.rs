//! Tests that `compare --overlap` finds a writer that has stopped.

use super::*;

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_kafka:
            a_writer_that_stops_while_the_topics_are_followed_is_a_difference;
    }
}

async fn a_writer_that_stops_while_the_topics_are_followed_is_a_difference(
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let topics = Topics::new(kafka).await?;
    let mut random = random_of("a_writer_that_stops_while_the_topics_are_followed_is_a_difference");
    let mut of_key =
        |n, partition| Event { key: Some(format!("o-{partition}")), partition, ..Event::new(n, &mut random) };
    let one: Vec<_> = (0..30).map(|n| of_key(n, 2)).collect();
    // The right writer sends nothing to this partition, in which the left one has events before and after the other writer begins.
    let other: Vec<_> = [3, 4, 25, 26, 27].map(|n| of_key(n, 3)).into();
    topics.write(&topics.left, "id", &[&one[..], &other[..]].concat())?;
    topics.write(&topics.right, "id", &one[10..20])?;
    for (arguments, left_out) in [(&["--overlap"][..], true), (&["--overlap", "--for", "2s"], false)] {
        let (code, report) = topics.compare(&[&["--wait", "10ms"], arguments].concat()).await?;
        ensure!(report["matched"] == 10, "{report:#}");
        let (before, after) = (&report["left"]["before_overlap"], &report["left"]["after_overlap"]);
        if left_out {
            ensure!(code == Some(0) && report["only_left"] == 0 && before == 15 && after == 10, "{report:#}");
        } else {
            ensure!(code == Some(1) && report["only_left"] == 13 && before == 12 && after == 13, "{report:#}");
            ensure!(report["notes"].to_string().contains("because the topics were followed"), "{report:#}");
        }
    }
    Ok(())
}
