//! Popping groups that come after one another.

use gantry_proto::names::GroupName;
use gantry_proto::remoting::body::group::SubscriptionGroupConfig;

use super::take::PopRequest;
use super::tests::Rig;

/// Has the group `h` come after the group `g`.
fn declare(rig: &Rig) {
    let config = SubscriptionGroupConfig {
        group_name: "h".to_owned(),
        attributes: [("+gantry.after".to_owned(), "g".to_owned())].into(),
        ..SubscriptionGroupConfig::default()
    };
    rig.open.pops.with.groups.declare(config).expect("declared");
}

/// What the first group is done with is as safe as it must be.
fn settle(rig: &Rig) {
    rig.open.pops.round();
    rig.open.offsets.log_waiting().expect("logged");
}

#[test]
fn a_group_pops_what_the_group_before_has_acknowledged() {
    let rig = Rig::new();
    declare(&rig);
    for number in 0..4 {
        rig.send(0, &number.to_string(), "t");
    }
    let (first, second) = (Rig::request(), PopRequest { group: GroupName::internal("h"), ..Rig::request() });
    assert_eq!(rig.bodies(&second), [""; 0]);
    let given = rig.pop(&first);
    let seen = rig.open.pops.seen(&second);
    for message in given.iter().filter(|message| message.body != "2") {
        assert_eq!(rig.ack(message), Ok(()));
    }
    settle(&rig);
    assert_ne!(rig.open.pops.seen(&second), seen, "whoever is about to wait sees that there is more");
    assert_eq!(rig.bodies(&second), ["0", "1"], "the group before is not done with message 2");
    let rig = rig.kill();
    assert_eq!(rig.bodies(&second), [""; 0]);
    let late = given.iter().find(|message| message.body == "2").expect("it was given");
    assert_eq!(rig.ack(late), Ok(()));
    settle(&rig);
    assert_eq!(rig.bodies(&second), ["2", "3"]);
}
