//! The name service: routes (105), clusters (106, 901), topic lists (206, 224, 304, 311 to 313), pairs
//! (100 to 102, 219), other brokers (103, 104, 322, 904), write permissions (205, 327), forgetting a
//! topic (216) and the name server's settings (318, 319).

use std::collections::BTreeSet;

use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::cluster::GetBrokerMemberGroupResponseBody;
use gantry_proto::remoting::body::lists::{KvTable, TopicList};
use gantry_proto::remoting::body::route::RouteData;
use gantry_proto::remoting::body::topic::DataVersion;
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::nameserver::{
    AddWritePermResponse, BrokerHeader, BrokerHeartbeatHeader, BrokerNameHeader, GetBrokerMemberGroupHeader,
    GetKvConfigResponse, GetRouteInfoHeader, GetTopicsByClusterHeader, KvConfigKeyHeader, KvNamespaceHeader,
    PutKvConfigHeader, QueryDataVersionResponse, RegisterBrokerHeader, RegisterBrokerResponse,
    WipeWritePermResponse,
};
use gantry_proto::remoting::request::topic::{DeleteTopicInNamesrvHeader, TopicHeader};

use super::context::{Caller, Reply, chain, settle, short};
use super::member::body_of;
use crate::config::Config;
use crate::routes::kv::ORDER_TOPIC_CONFIG;
use crate::routes::{BrokerIdentity, Embedded, Inventory, Registration, Registry, TopicQueues, answer};

/// Field in which a broker names its zone.
const ZONE_FIELD: &str = "__ZONE_NAME";
/// Topic flag: the topic of a unit.
const FLAG_UNIT: i32 = 1;
/// Topic flag: a unit subscribes to it.
const FLAG_UNIT_SUB: i32 = 2;

/// Code 105.
pub fn get_route(routes: &dyn Registry, request: &OwnedCommand, caller: &Caller) -> Reply {
    settle(|| {
        let header: GetRouteInfoHeader<'_> = request.header()?;
        let standard_only = header.accept_standard_json_only.unwrap_or(false);
        match routes.route(header.topic, caller.local) {
            Some(route) => Ok(Reply::body(answer::encode(&route, request.version, standard_only))),
            None => Err(Reply::refused(
                ResponseCode::TopicNotExist,
                format!("no broker has the topic {}: create it, or check its name", short(header.topic)),
            )),
        }
    })
}

/// Code 106.
pub fn get_cluster_info(routes: &dyn Registry, caller: &Caller) -> Reply {
    Reply::body(routes.cluster_info(caller.local).to_json())
}

/// Code 901.
pub fn get_member_group(routes: &dyn Registry, request: &OwnedCommand, caller: &Caller) -> Reply {
    settle(|| {
        let header: GetBrokerMemberGroupHeader = request.header()?;
        let group = routes.members(&header.cluster_name, &header.broker_name, caller.local);
        Ok(Reply::body(GetBrokerMemberGroupResponseBody { broker_member_group: Some(group) }.to_json()))
    })
}

fn list(topics: BTreeSet<String>) -> Reply {
    Reply::body(TopicList { broker_addr: None, topic_list: topics.into_iter().collect() }.to_json())
}

/// Code 206.
pub fn get_topics(routes: &dyn Registry) -> Reply {
    list(routes.topics(None, &|_| true))
}

/// Code 224.
pub fn get_topics_of_cluster(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GetTopicsByClusterHeader = request.header()?;
        Ok(list(routes.topics(Some(&header.cluster), &|_| true)))
    })
}

/// Code 304: the names of clusters and brokers, which name topics as well.
pub fn get_system_topics(routes: &dyn Registry, caller: &Caller) -> Reply {
    let info = routes.cluster_info(caller.local);
    let names: BTreeSet<_> = info
        .cluster_addr_table
        .iter()
        .flat_map(|(cluster, brokers)| brokers.iter().chain([cluster]))
        .collect();
    let address = info.broker_addr_table.values().flat_map(|broker| broker.broker_addrs.values()).next();
    let topic_list = names.into_iter().cloned().collect();
    Reply::body(TopicList { broker_addr: address.cloned(), topic_list }.to_json())
}

/// Code 311: topics of units.
pub fn get_unit_topics(routes: &dyn Registry) -> Reply {
    list(routes.topics(None, &|queues| queues.sys_flag & FLAG_UNIT != 0))
}

/// Code 312: topics that a unit subscribes to.
pub fn get_unit_sub_topics(routes: &dyn Registry) -> Reply {
    list(routes.topics(None, &|queues| queues.sys_flag & FLAG_UNIT_SUB != 0))
}

/// Code 313: topics of no unit that a unit subscribes to.
pub fn get_unit_sub_ununit_topics(routes: &dyn Registry) -> Reply {
    let wanted = |queues: TopicQueues| queues.sys_flag & (FLAG_UNIT | FLAG_UNIT_SUB) == FLAG_UNIT_SUB;
    list(routes.topics(None, &wanted))
}

/// Code 100.
pub fn put_kv(routes: &Embedded, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: PutKvConfigHeader = request.header()?;
        let put = routes.kv().put(&header.namespace, &header.key, &header.value);
        put.map_err(|error| Reply::refused(ResponseCode::SystemError, chain(&error)))?;
        Ok(Reply::ok())
    })
}

/// Code 101.
pub fn get_kv(routes: &Embedded, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: KvConfigKeyHeader = request.header()?;
        let value = routes.kv().get(&header.namespace, &header.key).ok_or_else(|| {
            let (namespace, key) = (short(&header.namespace), short(&header.key));
            Reply::refused(
                ResponseCode::QueryNotFound,
                format!("namespace {namespace} has no key {key}: put it first"),
            )
        })?;
        Ok(Reply::header(&GetKvConfigResponse { value: Some(value) }))
    })
}

/// Code 102.
pub fn delete_kv(routes: &Embedded, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: KvConfigKeyHeader = request.header()?;
        let deleted = routes.kv().delete(&header.namespace, &header.key);
        deleted.map_err(|error| Reply::refused(ResponseCode::SystemError, chain(&error)))?;
        Ok(Reply::ok())
    })
}

/// Code 219.
pub fn list_kv(routes: &Embedded, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: KvNamespaceHeader = request.header()?;
        let table = routes.kv().list(&header.namespace).ok_or_else(|| {
            let why = format!("namespace {} has no keys: put one first", short(&header.namespace));
            Reply::refused(ResponseCode::QueryNotFound, why)
        })?;
        Ok(Reply::body(KvTable { table }.to_json()))
    })
}

/// Code 103.
pub fn register_broker(routes: &Embedded, request: &OwnedCommand, caller: &Caller) -> Reply {
    settle(|| {
        let header: RegisterBrokerHeader = request.header()?;
        let inventory = Inventory::decode(&request.body, header.compressed, header.body_crc32)
            .map_err(|error| Reply::refused(ResponseCode::SystemError, chain(&error)))?;
        let registration = Registration {
            broker: BrokerIdentity {
                cluster: header.cluster_name,
                name: header.broker_name,
                id: header.broker_id,
                address: header.broker_addr,
            },
            ha_address: header.ha_server_addr,
            timeout_ms: header.heartbeat_timeout_millis.and_then(|ms| u64::try_from(ms).ok()),
            acting_master: header.enable_acting_master,
            zone: request.ext.get(ZONE_FIELD).map(str::to_owned),
            connection: caller.connection,
            inventory,
        };
        let registered = routes.register(registration).map_err(|error| {
            tracing::warn!(remote = %caller.remote, %error, "a broker was not registered");
            Reply::refused(ResponseCode::SystemError, error.to_string())
        })?;
        let reply = Reply::header(&RegisterBrokerResponse {
            ha_server_addr: registered.ha_address,
            master_addr: registered.master_address,
        });
        // Apache's brokers keep the order of topics from here.
        Ok(match routes.kv().list(ORDER_TOPIC_CONFIG) {
            Some(table) => reply.with_body(KvTable { table }.to_json()),
            None => reply,
        })
    })
}

/// Code 217: a topic of other brokers, until they register again without it.
pub fn register_topic(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: TopicHeader = request.header()?;
        let body: RouteData = body_of(request)?;
        routes
            .add_topic(&header.topic, &body.queue_datas)
            .map_err(|error| Reply::refused(ResponseCode::SystemError, error.to_string()))?;
        Ok(Reply::ok())
    })
}

/// Code 104.
pub fn unregister_broker(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: BrokerHeader = request.header()?;
        routes.unregister(&BrokerIdentity {
            cluster: header.cluster_name,
            name: header.broker_name,
            id: header.broker_id,
            address: header.broker_addr,
        });
        Ok(Reply::ok())
    })
}

/// Code 322: whether the topics changed since the broker registered.
pub fn query_data_version(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: BrokerHeader = request.header()?;
        let asked = DataVersion::from_json(&request.body).map_err(|error| {
            Reply::refused(ResponseCode::SystemError, format!("the body is not a data version: {error}"))
        })?;
        let known = routes.heard(&header.cluster_name, &header.broker_addr);
        let reply = Reply::header(&QueryDataVersionResponse { changed: known != Some(asked) });
        Ok(match known {
            Some(version) => reply.with_body(version.to_json()),
            None => reply,
        })
    })
}

/// Code 904. An unknown broker is no error: it registers at its next turn.
pub fn broker_heartbeat(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: BrokerHeartbeatHeader = request.header()?;
        routes.heard(&header.cluster_name, &header.broker_addr);
        Ok(Reply::ok())
    })
}

/// Code 205.
pub fn wipe_write_perm(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: BrokerNameHeader = request.header()?;
        let topics = routes.set_wiped(&header.broker_name, true);
        let wipe_topic_count = i32::try_from(topics).unwrap_or(i32::MAX);
        Ok(Reply::header(&WipeWritePermResponse { wipe_topic_count }))
    })
}

/// Code 327.
pub fn add_write_perm(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: BrokerNameHeader = request.header()?;
        let topics = routes.set_wiped(&header.broker_name, false);
        let add_topic_count = i32::try_from(topics).unwrap_or(i32::MAX);
        Ok(Reply::header(&AddWritePermResponse { add_topic_count }))
    })
}

/// Code 216. Topics of this broker stay: code 215 deletes those.
pub fn forget_topic(routes: &dyn Registry, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: DeleteTopicInNamesrvHeader = request.header()?;
        let cluster = header.cluster_name.as_deref().filter(|cluster| !cluster.is_empty());
        routes.forget_topic(&header.topic, cluster);
        Ok(Reply::ok())
    })
}

/// Code 318.
pub fn update_settings() -> Reply {
    Reply::refused(
        ResponseCode::NoPermission,
        "the name service has no settings that change while it runs: set the broker's flags, environment or file and restart it",
    )
}

/// Code 319: what the name service goes by, under the names that Apache's tools know.
pub fn get_settings(routes: &Embedded, config: &Config, caller: &Caller) -> Reply {
    let settings = [
        ("bindAddress", config.node.bind.to_string()),
        ("listenPort", caller.local.port().to_string()),
        ("kvConfigPath", routes.kv().path().display().to_string()),
        ("orderMessageEnable", "true".to_owned()),
        ("returnOrderTopicConfigToBroker", "true".to_owned()),
        ("deleteTopicWithBrokerRegistration", "false".to_owned()),
        ("supportActingMaster", "false".to_owned()),
        ("serverChannelMaxIdleTimeSeconds", config.limits.idle.as_secs().to_string()),
    ];
    Reply::body(settings.map(|(name, value)| format!("{name}={value}\n")).concat().into_bytes())
}

#[cfg(test)]
mod tests {
    use gantry_proto::remoting::codes::Language;
    use gantry_proto::remoting::header::ExtWrite;
    use tempfile::TempDir;

    use super::*;
    use crate::fixture::clock;
    use crate::groups::members::Peer;
    use crate::routes::fixture::{REACHED, registry};

    fn caller() -> Caller {
        let (outbox, _) = Peer::outbox();
        Caller {
            connection: 1,
            remote: REACHED,
            local: REACHED,
            language: Language::Java,
            version: 513,
            outbox,
        }
    }

    fn request(header: &impl ExtWrite) -> OwnedCommand {
        OwnedCommand::request(0, header)
    }

    fn text(reply: &Reply) -> &str {
        std::str::from_utf8(&reply.body).unwrap()
    }

    fn register(name: &str) -> RegisterBrokerHeader {
        RegisterBrokerHeader {
            broker_name: name.to_owned(),
            broker_addr: "192.0.2.10:10911".to_owned(),
            cluster_name: "DefaultCluster".to_owned(),
            ..RegisterBrokerHeader::default()
        }
    }

    const TWO_TOPICS: &[u8] =
        br#"{"topicConfigSerializeWrapper":{"dataVersion":{"counter":3},"topicConfigTable":{
        "a":{"topicName":"a","perm":6,"topicSysFlag":1},"b":{"topicName":"b","perm":6,"topicSysFlag":2}}}}"#;

    #[test]
    fn routes_are_answered_in_the_form_that_the_client_reads() {
        let dir = TempDir::new().unwrap();
        let routes = registry(dir.path(), &["t"], clock());
        let mut ask = request(&GetRouteInfoHeader { topic: "t", accept_standard_json_only: None });
        let quoted = r#"{"0":"127.0.0.1:10911"}"#;
        assert!(text(&get_route(&routes, &ask, &caller())).contains(quoted));
        ask.version = 317;
        assert!(text(&get_route(&routes, &ask, &caller())).contains(r#"{0:"127.0.0.1:10911"}"#));
        ask.ext.set("acceptStandardJsonOnly", "true");
        assert!(text(&get_route(&routes, &ask, &caller())).contains(quoted));
        let unknown = request(&GetRouteInfoHeader { topic: "unknown", accept_standard_json_only: None });
        assert_eq!(get_route(&routes, &unknown, &caller()).code, 17);
    }

    #[test]
    fn a_broker_registers_asks_beats_and_leaves() {
        let dir = TempDir::new().unwrap();
        let routes = registry(dir.path(), &["t"], clock());
        routes.kv().put(ORDER_TOPIC_CONFIG, "a", "broker-b:4").unwrap();
        let header = register("broker-b");
        let registered = register_broker(&routes, &request(&header).body(TWO_TOPICS), &caller());
        assert_eq!((registered.code, text(&registered)), (0, r#"{"table":{"a":"broker-b:4"}}"#));
        assert_eq!(text(&get_topics(&routes)), r#"{"topicList":["a","b","t"]}"#);
        assert_eq!(text(&get_unit_topics(&routes)), r#"{"topicList":["a"]}"#);
        assert_eq!(text(&get_unit_sub_topics(&routes)), r#"{"topicList":["b"]}"#);
        assert_eq!(text(&get_unit_sub_ununit_topics(&routes)), r#"{"topicList":["b"]}"#);
        let elsewhere = request(&GetTopicsByClusterHeader { cluster: "elsewhere".to_owned() });
        assert_eq!(text(&get_topics_of_cluster(&routes, &elsewhere)), r#"{"topicList":[]}"#);
        assert_eq!(
            text(&get_system_topics(&routes, &caller())),
            r#"{"brokerAddr":"127.0.0.1:10911","topicList":["DefaultCluster","broker-a","broker-b"]}"#
        );

        let who = BrokerHeader {
            broker_name: header.broker_name,
            broker_addr: header.broker_addr,
            cluster_name: header.cluster_name,
            broker_id: 0,
        };
        let changed = |body: &'static [u8]| {
            let reply = query_data_version(&routes, &request(&who).body(body));
            (reply.ext.get("changed").map(str::to_owned), text(&reply).to_owned())
        };
        let known = r#"{"counter":3,"stateVersion":0,"timestamp":0}"#.to_owned();
        assert_eq!(changed(br#"{"counter":3}"#), (Some("false".to_owned()), known.clone()));
        assert_eq!(changed(br#"{"counter":4}"#), (Some("true".to_owned()), known));
        assert_eq!(query_data_version(&routes, &request(&who).body(&b"{"[..])).code, 1);
        assert_eq!(broker_heartbeat(&routes, &request(&BrokerHeartbeatHeader::default())).code, 0);

        let forget = DeleteTopicInNamesrvHeader { topic: "a".to_owned(), cluster_name: Some(String::new()) };
        forget_topic(&routes, &request(&forget));
        assert_eq!(text(&get_topics(&routes)), r#"{"topicList":["b","t"]}"#);
        unregister_broker(&routes, &request(&who));
        assert_eq!(text(&get_topics(&routes)), r#"{"topicList":["t"]}"#);
        assert_eq!(changed(br#"{"counter":3}"#), (Some("true".to_owned()), String::new()));
    }

    #[test]
    fn refused_registrations_say_why() {
        let dir = TempDir::new().unwrap();
        let routes = registry(dir.path(), &["t"], clock());
        let refused = |header: &RegisterBrokerHeader, body: &'static [u8]| {
            let reply = register_broker(&routes, &request(header).body(body), &caller());
            assert_eq!(reply.code, 1);
            reply.remark.unwrap()
        };
        let wrong_crc = RegisterBrokerHeader { body_crc32: 1, ..register("broker-b") };
        assert!(refused(&wrong_crc, TWO_TOPICS).contains("CRC-32"));
        assert!(refused(&register("broker-a"), TWO_TOPICS).contains("another brokerName"));
        let not_zlib = RegisterBrokerHeader { compressed: true, ..register("broker-b") };
        assert!(refused(&not_zlib, TWO_TOPICS).contains("zlib"));
        let mut number = request(&register("broker-b"));
        number.ext.set("brokerId", "one");
        let reply = register_broker(&routes, &number, &caller());
        assert!(reply.remark.unwrap().contains("brokerId"));
    }

    #[test]
    fn pairs_are_put_got_listed_and_deleted() {
        let dir = TempDir::new().unwrap();
        let routes = registry(dir.path(), &[], clock());
        let pair = request(&PutKvConfigHeader {
            namespace: "n".to_owned(),
            key: "k".to_owned(),
            value: "v".to_owned(),
        });
        assert_eq!((get_kv(&routes, &pair).code, list_kv(&routes, &pair).code), (22, 22));
        assert_eq!(put_kv(&routes, &pair).code, 0);
        assert_eq!(get_kv(&routes, &pair).ext.get("value"), Some("v"));
        assert_eq!(text(&list_kv(&routes, &pair)), r#"{"table":{"k":"v"}}"#);
        assert_eq!(delete_kv(&routes, &pair).code, 0);
        assert_eq!(get_kv(&routes, &pair).code, 22);
        assert_eq!(put_kv(&routes, &request(&())).code, 1);
    }

    #[test]
    fn write_permissions_go_and_come_back() {
        let dir = TempDir::new().unwrap();
        let routes = registry(dir.path(), &["t", "u"], clock());
        let own = request(&BrokerNameHeader { broker_name: "broker-a".to_owned() });
        assert_eq!(wipe_write_perm(&routes, &own).ext.get("wipeTopicCount"), Some("2"));
        let ask = request(&GetRouteInfoHeader { topic: "t", accept_standard_json_only: None });
        assert!(text(&get_route(&routes, &ask, &caller())).contains(r#""perm":4"#));
        assert_eq!(add_write_perm(&routes, &own).ext.get("addTopicCount"), Some("2"));
        assert!(text(&get_route(&routes, &ask, &caller())).contains(r#""perm":6"#));
    }

    #[test]
    fn clusters_members_and_settings() {
        let dir = TempDir::new().unwrap();
        let routes = registry(dir.path(), &[], clock());
        let broker =
            r#"{"brokerAddrs":{0:"127.0.0.1:10911"},"brokerName":"broker-a","cluster":"DefaultCluster""#;
        assert!(text(&get_cluster_info(&routes, &caller())).contains(broker));
        let ask = GetBrokerMemberGroupHeader {
            cluster_name: "DefaultCluster".to_owned(),
            broker_name: "broker-a".to_owned(),
        };
        let group = get_member_group(&routes, &request(&ask), &caller());
        assert_eq!(text(&group), format!(r#"{{"brokerMemberGroup":{broker}}}}}"#));
        let settings = get_settings(&routes, &Config::default(), &caller());
        assert!(text(&settings).contains("listenPort=9876\n"));
        assert!(text(&settings).contains("kvConfig.json\n"));
        assert_eq!(update_settings().code, 16);
    }
}
