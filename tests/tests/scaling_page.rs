//! The figures that docs/scaling.md computes are those of its formula.

use std::{fs, path::Path};

/// Gigabytes of XL/2's gradients, pieces of them, and the part of a step in which they can be sent.
const GRADIENTS: f64 = 610_856_096.0 * 4.0 / 1e9;
const PIECES: f64 = 94.0;
const HIDDEN: f64 = 0.7;
/// Seconds of a picture on the two devices that are assumed.
const A: f64 = 3.817 / 32.0;
const B: f64 = 2.0 * 2.5774 / 200.0;

/// The rows of the table whose head begins with these columns.
fn table(page: &str, head: &str) -> Vec<Vec<String>> {
    let rows = page.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let cells =
        |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(cells).collect()
}

fn number(text: &str) -> f64 {
    let digits = text.trim().split([' ', ',']).next().expect("a number");
    digits.parse().unwrap_or_else(|_| panic!("no number: {text}"))
}

#[test]
fn computed_figures_follow_from_the_formula() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/scaling.md");
    let page = fs::read_to_string(page).expect("the page");
    let links = table(&page, "| link | w, one direction |");
    assert_eq!(links.len(), 6);
    let rows = table(&page, "| link | n | exchange |");
    assert_eq!(rows.len(), 3 * links.len());
    for row in rows {
        let [link, n, exchange, a_32, b_32, b_4, least] = &row[..] else { panic!("{row:?}") };
        let found = links.iter().find(|known| known[0].contains(link.as_str()));
        let [_, speed, latency, _] = &found.expect("a known link")[..] else { panic!("{links:?}") };
        let (speed, latency, n) = (number(speed), number(latency) * 1e-6, number(n));
        let seconds = 2.0 * (n - 1.0) / n * GRADIENTS / speed + PIECES * 2.0 * n.log2() * latency;
        assert_eq!(*exchange, format!("{seconds:.3} s"), "{row:?}");
        let efficiency = |device: f64| {
            let step = device.max((1.0 - HIDDEN) * device + seconds);
            format!("{:.0} %", 100.0 * device / step)
        };
        let expected = [32.0 * A, 32.0 * B, 4.0 * B].map(efficiency);
        assert_eq!([a_32, b_32, b_4].map(String::clone), expected, "{row:?}");
        let from = |picture: f64| (seconds / (HIDDEN * picture)).ceil();
        assert_eq!(*least, format!("{}, {}", from(A), from(B)), "{row:?}");
    }
    assert_eq!((GRADIENTS * 1e9 / (25.0 * 1024.0 * 1024.0)).ceil(), PIECES);
}
