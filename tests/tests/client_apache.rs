//! The Rust client against a real Apache broker.

use gantry_tests::apache::Apache;

mod client_scenarios;

/// Apache cannot delete a topic without its timer.
const SETTINGS: &[&str] =
    &["transactionTimeOut=1000", "transactionCheckInterval=1000", "timerWheelEnable=true"];

/// One JVM for all of it: starting one takes seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_works_with_apache() {
    let apache = match Apache::start(SETTINGS) {
        Ok(apache) => apache,
        Err(why) => {
            println!("SKIPPED client_apache: {why}");
            return;
        }
    };
    client_scenarios::all(apache.name_server()).await;
}
