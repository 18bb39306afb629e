//! The manifests of packaging/k8s fit each other, the program, and what they are for.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::PROGRAM;
use super::kubelet::python;

const IMAGE: &str = concat!("localhost/linkspan:", env!("CARGO_PKG_VERSION"));

/// All objects of a manifest; `None` after saying that they cannot be read.
pub(crate) fn objects(test: &str, name: &str) -> Option<Vec<Value>> {
    let python = python(test, "yaml, json", "python3-yaml")?;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/k8s");
    let script =
        "import json, sys, yaml\nprint(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut command = Command::new(python);
    let output = command.args(["-c", script]).arg(path.join(name)).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{name}: {output:?}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut of_kind = objects.iter().filter(|it| it["kind"] == kind);
    let found = of_kind.next().unwrap();
    assert!(of_kind.next().is_none(), "{kind}");
    found
}

fn words(list: &Value) -> Vec<String> {
    let words = list.as_array().into_iter().flatten();
    words.map(|it| it.as_str().unwrap().to_owned()).collect()
}

fn containers(pod: &Value) -> Vec<&Value> {
    let all = [&pod["initContainers"], &pod["containers"]];
    all.into_iter()
        .filter_map(Value::as_array)
        .flatten()
        .collect()
}

/// The arguments of our program, if a container runs it.
fn ours(container: &Value) -> Option<Vec<String>> {
    (container["image"] == IMAGE && container.get("command").is_none())
        .then(|| words(&container["args"]))
}

/// The value of an option as our parser has it, defaults among them.
fn option(arguments: &[String], option: &str) -> PathBuf {
    let words = ["linkspan"]
        .into_iter()
        .chain(arguments.iter().map(String::as_str));
    let mut matches = &linkspan::cli::command().get_matches_from(words);
    loop {
        if let Ok(Some(mut raw)) = matches.try_get_raw(option) {
            return raw.next().unwrap().into();
        }
        matches = matches.subcommand().expect(option).1;
    }
}

/// It gives up all that it can, and stays under the filter of its runtime.
fn is_confined(pod: &Value) {
    let profile = &pod["securityContext"]["seccompProfile"]["type"];
    assert_eq!(profile, "RuntimeDefault");
    for container in containers(pod) {
        let name = &container["name"];
        let context = &container["securityContext"];
        assert!(context.get("seccompProfile").is_none(), "{name}");
        assert!(context.get("privileged").is_none(), "{name}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(
            context["capabilities"]["drop"],
            serde_json::json!(["ALL"]),
            "{name}"
        );
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
    }
}

/// What is mounted is there, and folders of the node have the same path on both sides.
fn mounts(pod: &Value, container: &Value) -> Vec<PathBuf> {
    let volumes = pod["volumes"].as_array().unwrap();
    let mounts = container["volumeMounts"].as_array().unwrap().iter();
    let mounts = mounts.map(|mount| {
        let mut volumes = volumes.iter().filter(|it| it["name"] == mount["name"]);
        let volume = volumes.next().unwrap();
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            assert_eq!(mount["mountPath"], path);
        }
        PathBuf::from(mount["mountPath"].as_str().unwrap())
    });
    mounts.collect()
}

fn is_below(path: &Path, folders: &[PathBuf]) -> bool {
    folders.iter().any(|it| path.starts_with(it))
}

#[test]
fn the_daemon_set_fits_its_plane_and_the_program() {
    let test = "the_daemon_set_fits_its_plane_and_the_program";
    let Some(objects) = objects(test, "linkspan.yaml") else {
        return;
    };
    let plane = of_kind(&objects, "ConfigMap")["data"]["plane.toml"].as_str();
    let plane = plane.unwrap();
    let set = of_kind(&objects, "DaemonSet");
    let spec = &set["spec"];
    assert_eq!(
        spec["selector"]["matchLabels"],
        spec["template"]["metadata"]["labels"]
    );
    let pod = &spec["template"]["spec"];
    is_confined(pod);
    let all = containers(pod);
    let [folders, links, plugin] = all[..] else {
        panic!("{all:?}");
    };
    // The plane, and where it is.
    let up = ours(links).unwrap();
    let seen = mounts(pod, links);
    assert!(
        up[0] == "up" && is_below(&option(&up, "file"), &seen),
        "{up:?}"
    );
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap();
    let file = dir.path().join("plane.toml");
    fs::write(
        &file,
        plane
            .replace("/run/linkspan", here)
            .replace("/var/lib/linkspan", here),
    )
    .unwrap();
    let parsed: toml::Table = plane.parse().unwrap();
    let names: Vec<&String> = parsed["link"].as_table().unwrap().keys().collect();
    for name in &names {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(format!("{name}.img")), vec![0; 512]).unwrap();
    }
    let mut check = Command::new(PROGRAM);
    let check = check.args(["plane", "check"]).arg(&file).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    // What is made for it beforehand.
    let script = &words(&folders["args"])[0];
    let list = names
        .iter()
        .map(|it| it.as_str())
        .collect::<Vec<_>>()
        .join(" ");
    assert!(
        script.contains(&format!("for name in {list}; do")),
        "{script}"
    );
    let [user, group] = ["runAsUser", "runAsGroup"].map(|it| &links["securityContext"][it]);
    assert!(
        script.contains(&format!("install -d -o {user} -g {group} ")),
        "{script}"
    );
    // What asks the plane, and offers what is in it.
    let control = parsed["plane"]["control"].as_str().unwrap();
    let arguments = ours(plugin).unwrap();
    let seen = mounts(pod, plugin);
    assert_eq!(option(&arguments, "control"), Path::new(control));
    assert!(is_below(Path::new(control), &seen));
    assert!(seen.contains(&option(&arguments, "kubelet_dir")));
    let resource = option(&arguments, "resources");
    assert_eq!(resource, Path::new("linkspan.dev/disk=disk-*"));
    assert!(names.iter().all(|it| it.starts_with("disk-")), "{names:?}");
    let probe = words(&links["readinessProbe"]["exec"]["command"]);
    assert_eq!(option(&probe[1..], "control"), Path::new(control));
}

#[test]
fn the_pod_and_the_machine_have_the_socket_where_they_look() {
    let test = "the_pod_and_the_machine_have_the_socket_where_they_look";
    let Some(pods) = objects(test, "pod.yaml") else {
        return;
    };
    let pod = &of_kind(&pods, "Pod")["spec"];
    is_confined(pod);
    let arguments = ours(containers(pod)[0]).unwrap();
    let socket = option(&arguments, "socket_path");
    assert_eq!(socket, Path::new("/run/linkspan/disk/0/disk.sock"));
    let plugin = [
        "k8s",
        "device-plugin",
        "--resource",
        "linkspan.dev/disk=disk-*",
    ];
    let plugin = plugin.map(str::to_owned);
    let below = option(&plugin, "mount_below").join("disk/0/disk.sock");
    assert_eq!(socket, below);
    let objects = objects(test, "linkspan.yaml").unwrap();
    let plane = of_kind(&objects, "ConfigMap")["data"]["plane.toml"].as_str();
    assert_eq!(plane.unwrap().matches("/disk.sock\"").count(), 2);
    // Who connects has to be the user that listens.
    let set = &of_kind(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let links = &containers(set)[1]["securityContext"]["runAsUser"];
    assert_eq!(&pod["securityContext"]["runAsUser"], links);
    let limits = &containers(pod)[0]["resources"]["limits"];
    assert_eq!(limits["linkspan.dev/disk"], "1");
}

/// The hook of a machine of KubeVirt, as the shim calls it.
#[test]
fn the_hook_adds_a_disk_that_libvirt_takes() {
    let test = "the_hook_adds_a_disk_that_libvirt_takes";
    let Some(objects) = objects(test, "kubevirt.yaml") else {
        return;
    };
    let map = of_kind(&objects, "ConfigMap");
    let machine = &of_kind(&objects, "VirtualMachine")["spec"]["template"];
    let hooks = machine["metadata"]["annotations"]["hooks.kubevirt.io/hookSidecars"].as_str();
    let hooks: Value = serde_json::from_str(hooks.unwrap()).unwrap();
    let hook = &hooks[0]["configMap"];
    assert_eq!(hook["name"], map["metadata"]["name"]);
    assert_eq!(hook["hookPath"], "/usr/bin/onDefineDomain");
    let script = map["data"][hook["key"].as_str().unwrap()].as_str().unwrap();
    let limits = &machine["spec"]["domain"]["resources"]["limits"];
    assert_eq!(limits["linkspan.dev/disk"], "1");
    let Some(python) = python(test, "xml.etree", "python3") else {
        return;
    };
    let qemu = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'";
    let domain = |more: &str| {
        format!(
            "<domain type='kvm' {qemu}><name>a</name><memory>1048576</memory>{more}\
             <os><type>hvm</type></os><devices></devices>\
             <qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"
        )
    };
    let huge = "<memoryBacking><hugepages/></memoryBacking>";
    for (more, memfd) in [("", true), (huge, false)] {
        let mut command = Command::new(python);
        command.args(["-c", script, "--vmi", "{}", "--domain", &domain(more)]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let xml = String::from_utf8(output.stdout).unwrap();
        assert!(
            xml.contains("path=\"/run/linkspan/disk/0/disk.sock\""),
            "{xml}"
        );
        assert!(xml.contains("<access mode=\"shared\" />"), "{xml}");
        assert_eq!(xml.contains("memfd"), memfd, "{xml}");
        is_valid(test, &xml);
    }
}

fn is_valid(test: &str, xml: &str) {
    let mut command = Command::new("virt-xml-validate");
    command.args(["-", "domain"]).stdin(Stdio::piped());
    let Ok(mut child) = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    else {
        // Not by `eprintln`, which the test harness captures.
        let mut out = std::io::stderr().lock();
        drop(writeln!(
            out,
            "SKIP {test}: virt-xml-validate is not installed"
        ));
        return;
    };
    let mut input = child.stdin.take().unwrap();
    input.write_all(xml.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{xml}\n{output:?}");
}
