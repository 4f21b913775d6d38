//! What `apache/rocketmq-dashboard` asks of brokers and name servers, page by page. It does so with the client that `mqadmin` uses, so
//! that each request is shown by a test of its own; this table says which.

use crate::table;

/// Its pages and the request codes that they send.
const PAGES: &[(&str, &[i32])] = &[
    ("dashboard: brokers and topics, counts and rates", &[105, 106, 28, 206, 300, 315]),
    ("cluster: brokers, their state and settings", &[106, 28, 26]),
    ("topics: list, state, route", &[105, 106, 202, 206, 224, 304, 305]),
    ("topics: settings, new, changed, deleted", &[17, 21, 351, 215, 216]),
    ("topics: send a message", &[310]),
    ("topics and consumers: groups, offsets, lag", &[300, 208, 201, 352, 203, 307, 317, 345]),
    ("consumers: new, changed, deleted", &[200, 207, 215, 216]),
    ("consumers: reset and clone offsets, skip what waits", &[222, 314, 14, 15, 29, 208]),
    ("consumers: details of a client, with its threads", &[307]),
    ("producers: list and connections", &[204, 328]),
    ("messages: by topic and time", &[105, 11, 29, 30, 31, 32]),
    ("messages: by key, by id, by message id", &[12, 33]),
    ("messages: who has consumed it, consume it again", &[300, 203, 208, 309]),
    ("dead letters: list, resend", &[105, 11, 12, 310, 309]),
    ("message traces", &[12]),
    ("operations: name servers, write permission, kv configuration", &[205, 327, 100, 101, 102, 219, 319]),
    ("operations: clean queues and topics", &[306, 316, 329]),
    ("change settings of a broker", &[25]),
    ("ACL: users and rules", &[3001, 3002, 3003, 3004, 3005, 3006, 3007, 3008, 3009, 3010]),
];

// Named so that it runs behind `requests`, which writes the table that it reads.
#[test]
fn screens() {
    let requests = table::rows("requests");
    let row = |code: &i32| {
        let found = requests.iter().find(|row| row[0] == code.to_string());
        found.unwrap_or_else(|| panic!("the table of requests has no code {code}"))
    };
    let rows: Vec<_> = PAGES
        .iter()
        .map(|(page, codes)| {
            let unsupported = codes.iter().any(|code| row(code)[2] != "works");
            let state = if unsupported { "answered unsupported" } else { "works" };
            let mut tests: Vec<_> = codes
                .iter()
                .map(|code| row(code)[3].split(':').next().unwrap_or_default().trim().to_owned())
                .collect();
            tests.sort();
            tests.dedup();
            let codes: Vec<_> = codes.iter().map(i32::to_string).collect();
            vec![(*page).to_owned(), state.to_owned(), codes.join(" "), tests.join(", ")]
        })
        .collect();
    table::check("dashboard", &["page", "state", "requests", "shown by"], &rows, 3);
}
