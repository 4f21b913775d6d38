//! The wire and the record: frames, headers, records and their checksums.

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use gantry_proto::ids::{Millis, PhyOffset, QueueOffset};
use gantry_proto::record::{RecordView, seal};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::{FRAME_LIMIT, Frame, Serialize};
use gantry_proto::remoting::header::{Command, ExtFields, Head, encode_frame};
use gantry_proto::remoting::request::send::{SendMessageHeader, SendMessageResponse, SendMessageV2};

use super::SIZES;
use super::scratch::{Messages, TOPIC};

const PROPERTIES: &str =
    "UNIQ_KEY\u{1}7F0000010B7218B4AAC20000000000000001\u{2}KEYS\u{1}k1\u{2}TAGS\u{1}TagA\u{2}";

/// Measures frames in both forms, and records of both sizes.
pub fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for (name, serialize) in [("JSON", Serialize::Json), ("ROCKETMQ", Serialize::RocketMq)] {
        frames(&mut group, name, serialize);
    }
    for (name, size) in SIZES {
        records(&mut group, name, &vec![b'x'; size]);
    }
    group.finish();
}

fn send_header() -> SendMessageV2<'static> {
    SendMessageV2(SendMessageHeader {
        producer_group: "producers",
        topic: TOPIC,
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        queue_id: 3,
        born_timestamp: 1_700_000_000_000,
        properties: Some(PROPERTIES),
        reconsume_times: Some(0),
        unit_mode: Some(false),
        batch: Some(false),
        ..SendMessageHeader::default()
    })
}

fn frames(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, serialize: Serialize) {
    let body = [b'x'; 128];
    let (head, header) = (Head::request(RequestCode::SendMessageV2, 77), send_header());
    let mut request = Vec::new();
    let encode = |out: &mut Vec<u8>| {
        out.clear();
        encode_frame(out, serialize, &head, &header, body.len()).expect("a frame that can be written");
        out.extend_from_slice(&body);
    };
    encode(&mut request);
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("decode send, {name}"), |bencher| {
        let mut storage = ExtFields::with_capacity(16);
        bencher.iter(|| {
            let frame = Frame::cut(black_box(&request), FRAME_LIMIT).expect("a frame").expect("a whole one");
            let taken = std::mem::take(&mut storage);
            let command = Command::decode_reusing(frame.serialize, frame.header, taken).expect("a command");
            let header = SendMessageHeader::read(RequestCode::SendMessageV2, &command.ext).expect("a header");
            let seen = header.topic.len() + frame.body.len();
            storage = command.ext.recycle();
            seen
        });
    });
    group.bench_function(format!("encode send, {name}"), |bencher| {
        let mut out = Vec::new();
        bencher.iter(|| {
            encode(&mut out);
            out.len()
        });
    });
    group.bench_function(format!("encode send answer, {name}"), |bencher| {
        let head = Head::reply(ResponseCode::Success.code(), 77);
        let mut out = Vec::new();
        bencher.iter(|| {
            out.clear();
            let answer = SendMessageResponse {
                msg_id: black_box("7F00000100002A9F0000000000001000"),
                queue_id: 3,
                queue_offset: 123_456,
                ..SendMessageResponse::default()
            };
            encode_frame(&mut out, serialize, &head, &answer, 0).expect("a frame that can be written");
            out.len()
        });
    });
}

fn records(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, body: &[u8]) {
    let mut messages = Messages::new();
    let mut record = Vec::new();
    messages.draft(body).encode_into(&mut record).expect("an encodable record");
    seal(&mut record, QueueOffset::new(9), PhyOffset::new(4096), Millis::new(77));
    group.throughput(Throughput::Bytes(record.len() as u64));
    group.bench_function(format!("encode record, {name}"), |bencher| {
        let mut out = Vec::new();
        bencher.iter(|| {
            out.clear();
            messages.draft(black_box(body)).encode_into(&mut out).expect("an encodable record");
            seal(&mut out, QueueOffset::new(9), PhyOffset::new(4096), Millis::new(77));
            out.len()
        });
    });
    group.bench_function(format!("decode record, {name}"), |bencher| {
        bencher.iter(|| {
            let view = RecordView::parse(black_box(&record)).expect("a record");
            (
                view.queue_offset(),
                view.topic().len(),
                view.properties().scan().uniq_key.map(|key| key.as_bytes().len()),
            )
        });
    });
    group.bench_function(format!("check record, {name}"), |bencher| {
        let view = RecordView::parse(&record).expect("a record");
        bencher.iter(|| black_box(&view).check());
    });
}
