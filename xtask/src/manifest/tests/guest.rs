//! `[guest]`: what is refused, what becomes of it, and what a command line may say instead.

use guest_kit::early;
use ipc::guest::{AtEnd, Share, Shares};
use ipc::image::{CapabilityDescriptor, GuestDescriptor, ObjectDescriptor, RegionKind};

use super::{parse, refused};
use crate::manifest::{InitrdSource, KernelSource, MAX_BLOB_BYTES, Manifest, Overrides};

/// Services that can serve a guest.
const SERVICES: &str = r#"name = "test"
[[service]]
name = "supervisor"
priority = 0
budget = "50ms"
rights = ["supervise"]
[[service]]
name = "ept"
priority = 3
budget = "50ms"
notifies = [{ service = "vmm", name = "memory-lost" }]
[[service]]
name = "scheduler"
priority = 4
budget = "50ms"
[[service]]
name = "vmm"
priority = 6
budget = "50ms"
interrupts = [{ name = "console-irq", line = 4 }]
[[service]]
name = "carrier"
priority = 2
budget = "50ms"
[[pool]]
name = "frames"
size = "8K"
holders = ["ept", "vmm"]
"#;

const GUEST: &str = r#"[guest]
platform = "vmm"
memory = "ept"
placement = "scheduler"
priority = 12
ram = "256M"
"#;

fn with(guest: &str) -> String {
    format!("{SERVICES}{guest}")
}

/// A share of one vCPU and 256 MiB.
fn one(node: u16) -> Share {
    Share { node, vcpus: 1, pages: 65_536 }
}

/// A case that differs from `GUEST` in one line.
fn refused_with(from: &str, to: &str) {
    assert!(GUEST.contains(from));
    refused(&with(&GUEST.replace(from, to)));
}

fn refused_after(rest: &str) {
    refused(&with(&format!("{GUEST}{rest}")));
}

fn good(rest: &str) -> Manifest {
    parse("good.toml", &with(&format!("{GUEST}{rest}"))).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

#[test]
fn a_guest_is_given_to_those_that_serve_it() {
    let manifest = good("cpus = 4\nwalk-cache = true\ntables = \"1M\"\n");
    let wanted = GuestDescriptor {
        platform: 3,
        memory: 1,
        placement: 2,
        carrier: None,
        shares: Shares::from_array([Share { node: 1, vcpus: 4, pages: 65_536 }]),
        keep_pages: 4096,
        private_pages: 256,
        priority: 12,
    };
    assert_eq!(manifest.system.guest, Some(wanted));
    let holds = |service: usize| {
        let mut capabilities = manifest.descriptors[service].capabilities.iter();
        capabilities.any(|c| c.name == "guest" && c.object == ObjectDescriptor::Guest)
    };
    assert_eq!([0, 1, 2, 3].map(holds), [false, true, true, true]);
}

#[test]
fn a_guest_that_spans_nodes_has_a_share_of_each_and_a_carrier() {
    let manifest = good(
        "carrier = \"carrier\"\nnodes = 3\nkeep = \"1M\"\nwait = \"5s\"\n[[guest.node]]\nnumber = 2\ncpus = 4\nram = \"512M\"\n",
    );
    let guest = manifest.system.guest.unwrap();
    let second = Share { node: 2, vcpus: 4, pages: 131_072 };
    assert_eq!(guest.shares, Shares::from_array([one(1), second, one(3)]));
    // The walk cache is on by itself.
    assert_eq!((guest.carrier, guest.keep_pages, guest.private_pages), (Some(4), 256, 2048));
    let config = manifest.guest.unwrap().config;
    assert_eq!((config.shares, config.patience_s), (guest.shares, 5));
    let carrier = &manifest.descriptors[4].capabilities;
    let of = |object: &ObjectDescriptor| matches!(object, ObjectDescriptor::GuestFrames { .. });
    assert!(carrier.iter().any(|c| c.object == ObjectDescriptor::Guest));
    assert_eq!(carrier.iter().filter(|c| of(&c.object) && c.name == "guest-frames").count(), 1);
    // Its memory's service has room for the tables of all pages.
    assert!(manifest.descriptors[1].heap_bytes > (256 << 10) + 5 * (131_072 + 2 * 65_536));
    let alone = good("carrier = \"carrier\"\n");
    assert!(!alone.descriptors[4].capabilities.iter().any(|c| c.object == ObjectDescriptor::Guest));
}

#[test]
fn nodes_that_do_not_fit_together() {
    refused_after("nodes = 33 #! 'nodes' must be a whole number from 1 to 32");
    refused_after("nodes = 2 #! needs a 'carrier'");
    refused_after("carrier = \"ept\" #! 'ept' cannot be both 'memory' and 'carrier' of the guest\nnodes = 2");
    refused_after("carrier = \"ghost\" #! 'carrier' of the guest is 'ghost', but there is no such service");
    let spans = "carrier = \"carrier\"\n";
    refused_after(&format!(
        "{spans}nodes = 2\ncpus = 33 #! the nodes give the guest 66 vCPUs together, 64 at most"
    ));
    refused_after(&format!(
        "{spans}nodes = 2\n[[guest.node]] #! this guest's node has no 'number'\ncpus = 2\n"
    ));
    refused_after(&format!(
        "{spans}nodes = 2\n[[guest.node]] #! the guest has no node 3: 'nodes' is 2\nnumber = 3\n"
    ));
    refused_after(&format!(
        "{spans}nodes = 2\n[[guest.node]]\nnumber = 2\n[[guest.node]] #! node 2 of the guest is there twice\nnumber = 2\n"
    ));
    refused_after(&format!(
        "{spans}nodes = 2\n[[guest.node]]\nnumber = 2\ncolour = 1 #! unknown key 'colour'\n"
    ));
}

#[test]
fn its_parts_are_read_only_regions_of_the_platform() {
    let manifest = good("");
    let blobs: Vec<_> = manifest.descriptors[3]
        .capabilities
        .iter()
        .filter_map(|CapabilityDescriptor { name, object }| match *object {
            ObjectDescriptor::Region { region, address, writable } => {
                let region = &manifest.system.regions[usize::from(region)];
                (region.kind == RegionKind::Blob).then(|| {
                    assert_eq!(region.name, *name);
                    assert!(!writable);
                    (name.to_string(), address)
                })
            }
            _ => None,
        })
        .collect();
    let names: Vec<_> = blobs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["guest-config", "guest-kernel", "guest-initrd"]);
    assert!(blobs.windows(2).all(|pair| pair[0].1 + MAX_BLOB_BYTES < pair[1].1), "{blobs:x?}");
    let without = good("initrd = \"none\"\n");
    assert_eq!(without.system.regions.iter().filter(|r| r.kind == RegionKind::Blob).count(), 2);
}

#[test]
fn what_is_not_said_has_its_default() {
    let guest = good("").guest.unwrap();
    assert_eq!((&guest.config.shares[..], guest.config.walk_cache), (&[one(1)][..], false));
    assert_eq!((guest.config.patience_s, guest.node_bytes), (60, (65_537 + 4096) * 4096));
    assert_eq!((guest.kernel, guest.initrd), (KernelSource::Debian, InitrdSource::Shell));
    assert_eq!((guest.config.command_line.as_str(), guest.config.at_end), ("", AtEnd::PowerOff));
    let text = "kernel = \"a/vmlinuz\"\ninitrd = \"a/initrd\"\ncommand-line = \"console=ttyS0\"\nat-end = \"again\"\ntimes = 3\n";
    let guest = good(text).guest.unwrap();
    assert_eq!(guest.kernel, KernelSource::File("a/vmlinuz".into()));
    assert_eq!(KernelSource::named("early:vmrun"), KernelSource::Early(early::Scenario::Vmrun));
    assert_eq!(KernelSource::named("early:x"), KernelSource::File("early:x".into()));
    assert_eq!(guest.initrd, InitrdSource::File("a/initrd".into()));
    assert_eq!((guest.config.command_line.as_str(), guest.config.at_end), ("console=ttyS0", AtEnd::Again(3)));
    assert_eq!(good("at-end = \"stay\"").guest.unwrap().config.at_end, AtEnd::Stay);
    assert_eq!(parse("good.toml", super::GOOD).unwrap().guest, None);
}

#[test]
fn keys_that_are_wrong_or_missing() {
    refused_after("colour = 1 #! unknown key 'colour' in a guest");
    refused_with("[guest]\nplatform = \"vmm\"", "[guest] #! this guest has no 'platform'");
    refused_with("ram = \"256M\"", "cpus = 0 #! 'cpus' must be a whole number from 1 to 64\nram = \"256M\"");
    refused_after("cpus = 65 #! 'cpus' must be a whole number from 1 to 64");
    refused_with("\"256M\"", "\"63M\" #! 'ram' must be from 64M to 255G");
    refused_with("\"256M\"", "\"256G\" #! 'ram' must be from 64M to 255G");
    refused_with("\"256M\"", "\"65537K\" #! 'ram' must be a multiple of 4K");
    refused_with("\"256M\"", "256 #! 'ram' must be a size such as");
    refused_with("priority = 12", "priority = 16 #! 'priority' must be a whole number from 0 to 15");
    refused_after("walk-cache = \"on\" #! 'walk-cache' must be true or false");
    refused_after("tables = \"2G\" #! 'tables' must be from 64K to 1G");
    refused_after("command-line = [\"quiet\"] #! 'command-line' must be a text");
    refused(&format!("guest = 3 #! 'guest' must be a table\n{SERVICES}"));
}

#[test]
fn what_happens_at_its_end() {
    refused_after("at-end = \"explode\" #! 'at-end' must be power-off, stay or again, but it is \"explode\"");
    refused_after("at-end = \"again\" #! needs 'times'");
    refused_after("at-end = \"stay\"\ntimes = 2 #! 'times' goes with at-end = \"again\" only");
    refused_after("times = 2 #! 'times' goes with at-end = \"again\" only");
    refused_after(
        "at-end = \"again\" #! needs 'times'\ntimes = 0 #! 'times' must be a whole number from 1 to",
    );
}

#[test]
fn who_serves_it() {
    refused_with("\"vmm\"", "\"ghost\" #! 'platform' of the guest is 'ghost', but there is no such service");
    refused_with("\"ept\"", "\"Ept\" #! must be of lower-case letters #! 'memory' of the guest is 'Ept'");
    refused_with("\"scheduler\"", "\"ept\" #! 'ept' cannot be both 'memory' and 'placement' of the guest");
    refused_with("\"ept\"", "\"vmm\" #! 'vmm' cannot be both 'platform' and 'memory' of the guest");
    refused_with(
        "\"scheduler\"",
        "\"supervisor\" #! 'supervisor' is the supervisor: it cannot serve the guest",
    );
    refused_with(
        "priority = 12",
        "priority = 6 #! upward call: the guest (priority 6) must be less urgent than the services that serve it, and \
         'vmm' has 6",
    );
    refused_with("priority = 12", "priority = 4 #! and 'vmm' has 6 #! and 'scheduler' has 4");
    let slow_memory = SERVICES.replace("priority = 3", "priority = 7");
    let guest = GUEST.replace("\"ept\"", "\"ept\" #! but 'ept' has priority 7 and 'vmm' 6");
    refused(&format!("{slow_memory}{guest}"));
}

#[test]
fn the_platform_alone_may_have_the_console() {
    let ports = |first: &str| format!("ports = [{{ name = \"console\", first = {first}, count = 8 }}]");
    let given = |service: &str, ports: &str| {
        with(GUEST).replace(
            &format!("name = \"{service}\"\npriority"),
            &format!("name = \"{service}\"\n{ports}\npriority"),
        )
    };
    assert!(parse("good.toml", &given("vmm", &ports("0x3f8"))).is_ok());
    refused(&given("ept", &(ports("0x3f8") + " #! which the kernel keeps for its console (COM1)")));
    refused(&given("vmm", &(ports("0x3f7") + " #! which the kernel keeps for its console (COM1)")));
}

#[test]
fn names_that_its_parts_have() {
    let text = with(GUEST).replace("name = \"frames\"", "name = \"guest-kernel\"");
    refused(
        &text.replace(
            "[[pool]]",
            "[[pool]] #! 'vmm' gets the guest's part 'guest-kernel' by this name already",
        ),
    );
    let region =
        "regions = [{ name = \"guest-config\", size = \"4K\" }] #! gets the guest's part 'guest-config'";
    refused(&with(GUEST).replace("interrupts", &format!("{region}\ninterrupts")));
}

#[test]
fn command_lines() {
    let line = |bytes: usize, mark: &str| format!("command-line = \"{}\" {mark}", "x".repeat(bytes));
    assert!(parse("good.toml", &with(&format!("{GUEST}{}", line(2047, "")))).is_ok());
    refused_after(&line(2048, "#! the guest's command line is 2048 bytes long, 2047 at most"));
    refused_after("command-line = \"a\\nb\" #! must be one line");
    refused_after("command-line = \"a\\u0000b\" #! must be one line");
}

#[test]
fn its_vcpus_are_threads() {
    let service = |threads: usize, n: usize| {
        format!("[[service]]\nname = \"s{n}\"\npriority = 9\nbudget = \"1s\"\nthreads = {threads}\n")
    };
    let services: String = (0..3).map(|n| service(15, n)).chain([service(14, 3)]).collect();
    let text = |cpus: &str| with(&format!("{services}{GUEST}cpus = {cpus}\n"));
    assert!(parse("good.toml", &text("64")).is_ok(), "5 + 59 + 64 threads");
    let more: String = (0..3).map(|n| service(15, n)).chain([service(15, 3)]).collect();
    refused(&with(&format!(
        "{more}{GUEST}cpus = 64 #! too many threads: the services have 65, and with the guest's 64 vCPUs there are more than 128\n"
    )));
}

#[test]
fn a_command_line_takes_the_place_of_the_file() {
    let overrides = Overrides {
        kernel: Some(KernelSource::File("k".into())),
        initrd: Some(InitrdSource::None),
        command_line: Some("quiet".into()),
        nodes: Some(2),
        cpus: Some(3),
        ram_bytes: Some(128 << 20),
        keep_bytes: Some(8 << 20),
        walk_cache: Some(true),
        at_end: Some(AtEnd::Again(3)),
    };
    let line = "x".repeat(3_000);
    let text = with(&format!("{GUEST}carrier = \"carrier\"\ncommand-line = \"{line}\"\ntables = \"1M\"\n"));
    let manifest = Manifest::parse("good.toml", &text, &overrides).unwrap();
    let guest = manifest.guest.unwrap();
    assert_eq!((guest.kernel, guest.initrd), (KernelSource::File("k".into()), InitrdSource::None));
    let share = |node| Share { node, vcpus: 3, pages: 32_768 };
    assert_eq!(guest.config.shares, Shares::from_array([share(1), share(2)]));
    assert_eq!((guest.config.command_line.as_str(), guest.config.walk_cache), ("quiet", true));
    assert_eq!(guest.config.at_end, AtEnd::Again(3));
    let described = manifest.system.guest.unwrap();
    assert_eq!((described.shares, described.private_pages), (guest.config.shares, 256));
    assert_eq!(described.keep_pages, 2048);
    let error = Manifest::parse("plain.toml", super::GOOD, &overrides).unwrap_err().to_string();
    assert_eq!(error, "plain.toml:1: this manifest has no [guest], so nothing can be said of its guest");
}
