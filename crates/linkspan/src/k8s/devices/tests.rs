//! Which links are devices, and what containers get.

use super::*;

fn resource(text: &str) -> Resource {
    text.parse().unwrap()
}

fn link(name: &str, state: &str, sockets: &[&str]) -> Link {
    Link {
        link: name.to_owned(),
        state: state.to_owned(),
        sockets: sockets.iter().map(PathBuf::from).collect(),
    }
}

fn asked(containers: &[&[&str]]) -> api::AllocateRequest {
    let container = |ids: &&[&str]| api::ContainerAllocateRequest {
        devices: ids.iter().map(|id| (*id).to_owned()).collect(),
    };
    api::AllocateRequest {
        container_requests: containers.iter().map(container).collect(),
    }
}

fn disks() -> (Resource, Devices) {
    let resource = resource("linkspan.dev/disk=disk-*");
    let links = [
        link("disk-a", "running", &["/run/l/a/s"]),
        link("disk-b", "running", &["/run/l/b/s"]),
        link("disk-c", "pausing", &["/run/l/c/s"]),
        link("lan", "running", &["/run/l/lan/s"]),
    ];
    let (devices, refused) = Devices::of(
        &resource,
        &[],
        &links,
        Path::new("/run/l/control.sock"),
        |_| true,
    );
    assert_eq!(refused, [""; 0]);
    (resource, devices)
}

#[test]
fn resources_have_the_names_that_a_node_may_have() {
    let disk = resource("linkspan.dev/disk-2=a*");
    assert_eq!(disk.whole_name(), "linkspan.dev/disk-2");
    assert_eq!(disk.endpoint(), "linkspan-linkspan.dev_disk-2.sock");
    assert_eq!(disk.variable(), "LINKSPAN_DISK_2");
    assert!(disk.is_taken_for(&resource("example.org/disk.2=b")));
    assert!(!disk.is_taken_for(&resource("linkspan.dev/disk-3=a*")));
    let (one, two) = (resource("a.b/c-d=x"), resource("a.b-c/d=y"));
    assert_ne!(one.endpoint(), two.endpoint());
    for text in [
        "disk",
        "linkspan.dev/disk",
        "disk=a",
        "linkspan/disk=a",
        "linkspan.dev/=a",
        "linkspan.dev/Disk=a",
        "linkspan.dev/../x=a",
        "linkspan.dev/disk/x=a",
        "linkspan.dev/disk=",
        "kubernetes.io/disk=a",
        "x.kubernetes.io/disk=a",
        "linkspan.dev/-disk=a",
    ] {
        assert!(text.parse::<Resource>().is_err(), "{text}");
    }
    let long = format!("linkspan.dev/{}=a", "x".repeat(60));
    assert!(long.parse::<Resource>().is_err());
}

#[test]
fn a_star_stands_for_anything() {
    for (pattern, name, is) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("*", "a", true),
        ("a*", "a", true),
        ("a*", "ba", false),
        ("*a", "ba", true),
        ("a*c", "abc", true),
        ("a*a", "a", false),
        ("a*b*c", "aXbYc", true),
        ("a*b*c", "acb", false),
        ("*ab*ab", "abab", true),
        ("*ab*ab", "ab", false),
    ] {
        assert_eq!(matches(pattern, name), is, "{pattern} {name}");
    }
}

#[test]
fn a_link_is_a_device_that_is_healthy_while_it_serves() {
    let (_, devices) = disks();
    assert_eq!(devices.count(), (3, 2));
    let list = devices.list().devices;
    let told: Vec<_> = list.iter().map(|it| (&it.id[..], &it.health[..])).collect();
    let expected = [
        ("disk-a", HEALTHY),
        ("disk-b", HEALTHY),
        ("disk-c", UNHEALTHY),
    ];
    assert_eq!(told, expected);
    assert_eq!(devices.unknown().count(), (3, 0));
    // One that has a process and no socket yet.
    let links = [link("disk-a", "running", &["/run/l/a/s"])];
    let (devices, _) = Devices::of(
        &resource("a.b/c=*"),
        &[],
        &links,
        Path::new("/run/l/control.sock"),
        |_| false,
    );
    assert_eq!(devices.count(), (1, 0));
}

/// A container that has a folder has all that is in it and below it.
#[test]
fn a_link_whose_folder_has_sockets_of_others_is_none() {
    let long = "x".repeat(64);
    let links = [
        link("alone", "running", &["/l/a/s"]),
        link("one", "running", &["/l/both/1"]),
        link("two", "running", &["/l/both/2"]),
        link("above", "running", &["/l/s"]),
        link("control", "running", &["/run/l/s"]),
        link("none", "running", &[]),
        link("ports", "running", &["/l/p/1", "/l/q/2"]),
        link("comma", "running", &["/l/c,d/s"]),
        link("detour", "running", &["/l/x/../y/s"]),
        link("relative", "running", &["s"]),
        link(&long, "running", &["/l/long/s"]),
    ];
    let (devices, refused) = Devices::of(
        &resource("a.b/c=*"),
        &[],
        &links,
        Path::new("/run/l/control.sock"),
        |_| true,
    );
    assert_eq!(devices.all.keys().collect::<Vec<_>>(), ["alone"]);
    let refused: Vec<_> = refused
        .iter()
        .map(|it| it.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(
        refused,
        [
            "/l/both has other sockets, too",
            "/l/both has other sockets, too",
            "/l has other sockets, too",
            "/run/l has other sockets, too",
            "it has 0 sockets, and a device has one",
            "it has 2 sockets, and a device has one",
            "/l/c,d/s cannot be told to a kubelet",
            "/l/x/../y/s cannot be told to a kubelet",
            "s cannot be told to a kubelet",
            "a device's name has at most 63 bytes",
        ]
    );
}

/// Two pods would have one disk.
#[test]
fn a_link_is_a_device_of_one_resource() {
    let links = [
        link("disk-a", "running", &["/l/a/s"]),
        link("disk-b", "running", &["/l/b/s"]),
    ];
    let (first, second) = (resource("a.b/c=*-a"), resource("a.b/d=disk-*"));
    let (devices, refused) = Devices::of(&second, &[first], &links, Path::new("/c"), |_| true);
    assert_eq!(devices.all.keys().collect::<Vec<_>>(), ["disk-b"]);
    assert_eq!(refused, ["link disk-a: it is of a.b/c already"]);
}

#[test]
fn a_container_gets_folders_by_number_and_is_told_of_sockets() {
    let (resource, devices) = disks();
    let answer = devices.allocate(&resource, "/run/linkspan", &asked(&[&["disk-b", "disk-a"]]));
    let answer = answer.unwrap().container_responses.remove(0);
    let mount = |to: &str, from: &str| api::Mount {
        container_path: to.to_owned(),
        host_path: from.to_owned(),
        read_only: true,
    };
    assert_eq!(
        answer.mounts,
        [
            mount("/run/linkspan/disk/0", "/run/l/b"),
            mount("/run/linkspan/disk/1", "/run/l/a"),
        ]
    );
    let sockets = "/run/linkspan/disk/0/s,/run/linkspan/disk/1/s";
    assert_eq!(answer.envs["LINKSPAN_DISK"], sockets);
    assert_eq!(answer.annotations["linkspan.dev/disk"], "disk-b,disk-a");
}

#[test]
fn what_cannot_be_had_is_named() {
    let (resource, devices) = disks();
    let refused = |request: &api::AllocateRequest| {
        let answer = devices.allocate(&resource, "/run/linkspan", request);
        answer.unwrap_err().code
    };
    assert_eq!(refused(&asked(&[&["disk-a", "disk-x"]])), Code::NotFound);
    // It is another resource's.
    assert_eq!(refused(&asked(&[&["lan"]])), Code::NotFound);
    assert_eq!(refused(&asked(&[&["disk-c"]])), Code::FailedPrecondition);
    assert_eq!(
        refused(&asked(&[&["disk-a"], &["disk-a"]])),
        Code::InvalidArgument
    );
    let many = vec!["disk-a"; TOGETHER_MAX + 1];
    assert_eq!(refused(&asked(&[&many])), Code::ResourceExhausted);
    let many = vec![&[][..]; TOGETHER_MAX + 1];
    assert_eq!(refused(&asked(&many)), Code::ResourceExhausted);
}

#[test]
fn those_that_have_to_be_there_are_preferred() {
    let (_, devices) = disks();
    let best = |available: &[&str], must: &[&str], size: i32| {
        let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let request = api::PreferredAllocationRequest {
            container_requests: vec![api::ContainerPreferredAllocationRequest {
                available: owned(available),
                must_include: owned(must),
                allocation_size: size,
            }],
        };
        let answer = devices.prefer(&request).map_err(|status| status.code);
        answer.map(|mut it| it.container_responses.remove(0).devices)
    };
    let owned = |ids: &[&str]| Ok(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
    let all = ["disk-b", "disk-a", "disk-x"];
    assert_eq!(best(&all, &[], 1), owned(&["disk-a"]));
    assert_eq!(best(&all, &["disk-b"], 2), owned(&["disk-b", "disk-a"]));
    assert_eq!(best(&all, &[], 3), Err(Code::InvalidArgument));
    assert_eq!(best(&all, &[], -1), Err(Code::InvalidArgument));
    assert_eq!(best(&all, &[], i32::MAX), Err(Code::ResourceExhausted));
}

#[test]
fn a_supervisor_s_answer_is_links_or_nothing() {
    let line = "{\"link\":\"a\",\"state\":\"running\",\"pid\":1,\"sockets\":[\"/a/s\"]}\n";
    assert_eq!(Link::list(line).unwrap(), [link("a", "running", &["/a/s"])]);
    assert_eq!(Link::list("").unwrap(), []);
    assert!(Link::list("{\"kind\":\"error\",\"error\":\"no\"}\n").is_err());
    assert!(Link::list("x").is_err());
}
