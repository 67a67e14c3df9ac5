use super::*;

fn channel(name: &str) -> Channel {
    name.as_bytes().into()
}

fn heard(hub: &Hub, channel: &str, payload: &str) {
    let frame = Bytes::copy_from_slice(payload.as_bytes());
    let notification = Notification {
        channel: channel.as_bytes(),
        payload: payload.as_bytes(),
    };
    hub.deliver(notification, &frame);
}

fn pass(hub: &Hub, marker: &Marker) {
    let payload = marker.payload();
    let notification = Notification {
        channel: MARKER_CHANNEL,
        payload: &payload,
    };
    hub.deliver(notification, &payload);
}

fn taken(member: &Membership) -> String {
    let mut out = BytesMut::new();
    member.take(&mut out, 1000);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn a_member_is_served_from_one_marker_to_the_other() {
    let hub = Arc::new(Hub::default());
    let member = hub.join(vec![channel("a")]).unwrap();
    let (begin, end) = (Marker::new(1, 1), Marker::new(1, 2));
    member.begin_at(&begin);
    member.end_at(&end);
    heard(&hub, "a", "0");
    pass(&hub, &begin);
    heard(&hub, "a", "1");
    heard(&hub, "b", "x");
    heard(&hub, "a", "2");
    assert!(!member.has_ended());
    pass(&hub, &end);
    heard(&hub, "a", "3");
    assert!(member.has_ended());
    assert_eq!(taken(&member), "12");
}

#[test]
fn a_marker_that_was_rolled_back_ends_nothing() {
    let hub = Arc::new(Hub::default());
    let member = hub.join(vec![channel("a")]).unwrap();
    hub.begin_with(&member);
    let marker = Marker::new(1, 1);
    member.end_at(&marker);
    member.forget_markers();
    pass(&hub, &marker);
    heard(&hub, "a", "1");
    assert_eq!((taken(&member).as_str(), member.has_ended()), ("1", false));
}

#[test]
fn the_server_is_told_the_difference() {
    let hub = Arc::new(Hub::default());
    let first = hub.join(vec![channel("a"), channel("b")]).unwrap();
    let changes = hub.take_changes().unwrap();
    assert_eq!((changes.listen.len(), changes.unlisten.len()), (2, 0));
    assert!(!first.is_heard());
    hub.confirmed(changes);
    assert!(first.is_heard());
    assert_eq!(hub.take_changes(), None);
    let second = hub.join(vec![channel("b")]).unwrap();
    assert!(second.is_heard(), "it is heard already");
    drop(first);
    let changes = hub.take_changes().unwrap();
    assert_eq!(changes.unlisten, [channel("a")], "b is still wanted");
    let third = hub.join(vec![channel("a")]).unwrap();
    assert!(!third.is_heard(), "its end is on the way");
    drop(third);
    hub.confirmed(changes);
    assert!(!hub.retire());
    drop(second);
    assert!(hub.retire());
    assert!(hub.join(vec![]).is_none());
}

#[test]
fn who_loses_the_listener_is_told() {
    let hub = Arc::new(Hub::default());
    let member = hub.join(vec![channel("a")]).unwrap();
    hub.close(&Fault::Lost("server stopped".into()));
    assert_eq!(member.fault(), Some(Fault::Lost("server stopped".into())));
}
