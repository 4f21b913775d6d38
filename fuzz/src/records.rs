//! Records, batches and properties as they come from a disk or a producer, and the texts in them.
//!
//! Decoders return; what checks out is written and read back the same; the two readers of properties agree.

use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::record::{
    BatchItems, OffsetMsgId, Properties, PropertiesBuf, RecordDraft, RecordView, Slot, TagExpression, seal,
};

/// Reads the input as each of them.
pub fn check(input: &[u8]) {
    if let Ok(Slot::Record(view)) = Slot::read(input) {
        check_record(&view);
    }
    for item in BatchItems::new(input).filter_map(Result::ok) {
        let mut bytes = Vec::new();
        if item.encode_into(&mut bytes).is_ok() {
            let again = BatchItems::new(&bytes).next().expect("an item").expect("a whole one");
            assert_eq!(again, item);
        }
        check_properties(item.properties);
    }
    check_properties(Properties::new(input));
    if let Ok(text) = std::str::from_utf8(input) {
        check_text(text);
    }
}

fn check_record(view: &RecordView<'_>) {
    assert_eq!(view.as_bytes().len(), view.total_size() as usize);
    let _ = (view.check_body_crc(), view.check_record_crc(), view.born_host(), view.store_host());
    check_properties(view.properties());
    if view.check().is_err() {
        return;
    }
    let properties = view.properties().without_crc().raw();
    let draft = RecordDraft::from_view(view, properties);
    let mut bytes = Vec::new();
    let Ok(size) = draft.encode_into(&mut bytes) else { return };
    assert_eq!((size, draft.encoded_len()), (bytes.len(), bytes.len()));
    seal(&mut bytes, view.queue_offset(), view.phy_offset(), view.store_at());
    let again = RecordView::parse(&bytes).expect("what was written is a record");
    again.check().expect("it is whole");
    assert_eq!((again.topic(), again.body(), again.queue_id()), (view.topic(), view.body(), view.queue_id()));
    assert_eq!((again.queue_offset(), again.phy_offset()), (view.queue_offset(), view.phy_offset()));
    assert_eq!((again.store_at(), again.born_at()), (view.store_at(), view.born_at()));
    assert_eq!((again.store_host(), again.born_host()), (view.store_host(), view.born_host()));
    assert_eq!((again.prepared_offset(), again.flag()), (view.prepared_offset(), view.flag()));
    assert!(again.properties().iter().eq(view.properties().without_crc().iter().chain(crc_of(&again))));
}

fn crc_of<'a>(view: &RecordView<'a>) -> impl Iterator<Item = (&'a str, &'a str)> {
    let listed = view.properties().without_crc().iter().count();
    view.properties().iter().skip(listed)
}

fn check_properties(properties: Properties<'_>) {
    let hot = properties.scan();
    assert_eq!(hot.tags, properties.tags().map(Into::into));
    assert_eq!(hot.uniq_key, properties.uniq_key().map(Into::into));
    assert_eq!(hot.is_half(), properties.is_half());
    assert_eq!(hot.waits_for_store(), properties.waits_for_store());
    assert!(hot.split_keys().eq(properties.keys()));
    let _ = hot.tags_code();
    for (name, _) in properties.iter().take(64) {
        assert!(properties.get(name).is_some(), "{name:?} is listed but not found");
    }
    let mut copy = PropertiesBuf::copy_of(properties, 16);
    copy.set("KEYS", "some");
    assert_eq!(copy.view().get("KEYS"), Some("some"));
    copy.remove("KEYS");
    assert_eq!(copy.view().get("KEYS"), None);
    let others = |(name, _): &(&str, &str)| *name != "KEYS";
    assert!(copy.view().iter().filter(others).eq(properties.iter().filter(others)));
}

fn check_text(text: &str) {
    if let Ok(id) = text.parse::<OffsetMsgId>() {
        let mut written = String::new();
        id.push_to(&mut written);
        assert_eq!(written.parse::<OffsetMsgId>().as_ref(), Ok(&id));
    }
    if let Ok(expression) = TagExpression::parse(text) {
        let _ = (expression.matches_tag(Some(text)), expression.matches_tag(None));
    }
    if let Ok(topic) = TopicName::storable(text) {
        let _ = (topic.kind(), topic.retry_group(), topic.dead_letter_group(), topic.is_protected());
    }
    if let Ok(group) = GroupName::parse(text) {
        let _ = (TopicName::retry(&group), TopicName::dead_letter(&group), group.is_system());
    }
    let _ = TopicName::parse(text);
}
