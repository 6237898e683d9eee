//! The story of `walship demo`, which every new user sees first: it comes to its end, and leaves nothing behind.

use std::time::Duration;

use crate::harness::Test;

/// It takes half a minute on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test]
async fn the_demo_ends_well_and_leaves_nothing() {
    let test = Test::new();
    // Fewer rows than by default: this build is not optimised.
    let demo = ["demo", "--rows", "200000", "--seconds", "4"];
    let told = test.walship_within(PATIENCE, &demo).await.succeeded();
    let expected = [
        "db1$ walship init --name db1 -D data",
        "db3$ walship standby --join ../db1/db3.join",
        "it flows db2 <- db3 <- db1",
        "it flows db2 <- db1",
        "is the primary of epoch 1",
        "follows it by itself, on timeline 2",
        "rows were acknowledged and shipped: all are on db",
        "\nSummary\n   base backups       db2: ",
        "WAL on the links   ",
        "commit to visible  p50 ",
        "promote            first write after ",
        "shipped, and all are there",
        "rows compared      2",
    ];
    for text in expected {
        assert!(told.contains(text), "{text:?} expected in\n{told}");
    }
    let wide: Vec<&str> = told.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "wider than 80 columns: {wide:#?}");
    let folder = told.lines().find_map(|line| line.strip_prefix("everything is in ")).unwrap();
    assert!(!std::path::Path::new(folder).exists(), "{folder} is still there");
}
