//! Each refusal with its line and words.

mod guest;
mod properties;

use super::{Manifest, Mistake, Overrides};

/// The start of most cases: three services that are sound.
const GOOD: &str = r#"
name = "test"
[[service]]
name = "supervisor"
priority = 0
budget = "50ms"
rights = ["supervise"]
[[service]]
name = "disk"
priority = 3
budget = "50ms"
calls = ["supervisor"]
[[service]]
name = "user"
priority = 5
budget = "50ms"
"#;

/// Parses a manifest as it stands.
fn parse(file: &str, text: &str) -> Result<Manifest, super::Mistakes> {
    Manifest::parse(file, text, &Overrides::default())
}

/// Checks that the mistakes are exactly those that comments `#! words` announce, each at its line.
fn refused(text: &str) {
    let wanted: Vec<(usize, &str)> = (1..)
        .zip(text.lines())
        .flat_map(|(line, text)| text.split("#! ").skip(1).map(move |words| (line, words.trim())))
        .collect();
    assert!(!wanted.is_empty(), "the case says no mistake");
    let mistakes = parse("bad.toml", text).expect_err(text);
    let shown: Vec<_> = mistakes.list.iter().map(|Mistake { line, text }| (*line, text.as_str())).collect();
    assert_eq!(shown.len(), wanted.len(), "wanted {wanted:#?}, got {shown:#?}");
    for (line, words) in wanted {
        assert!(
            shown.iter().any(|(at, text)| *at == line && text.contains(words)),
            "no '{words}' in line {line} of {shown:#?}"
        );
    }
    assert!(mistakes.to_string().lines().all(|line| line.starts_with("bad.toml:")));
}

/// A case that goes on where `GOOD` ends, in the service "user".
fn refused_after_good(rest: &str) {
    refused(&format!("{GOOD}{rest}"));
}

#[test]
fn what_is_not_toml() {
    refused("name = \"x\"\n[[service] #! not TOML: unclosed array table\n");
    refused("name = \"x\"\nname = \"y\" #! not TOML: duplicate key");
}

#[test]
fn unknown_keys_and_wrong_types() {
    refused_after_good("colour = 3 #! unknown key 'colour' in a service");
    refused_after_good("restarts = { limit = 1, perod = \"1s\" } #! unknown key 'perod' in a restart limit");
    refused_after_good("[[chanel]] #! unknown key 'chanel' in a manifest");
    refused_after_good(
        "threads = \"two\" #! 'threads' must be a whole number from 1 to 16, but it is \"two\"",
    );
    refused_after_good("pinned = 1 #! 'pinned' must be true or false");
    refused_after_good("calls = \"disk\" #! 'calls' must be a list of texts");
    refused_after_good("calls = [1] #! 'calls' must be a list of texts");
    refused_after_good("ports = 5 #! 'ports' must be a list of tables");
    refused_after_good("ports = [5] #! 'ports' must be a list of tables");
    refused_after_good("restarts = [] #! 'restarts' must be a table");
    refused_after_good("beat = 5 #! 'beat' must be a time such as");
    refused_after_good("stack = \"32\" #! 'stack' must be a size such as");
    refused_after_good("stack = \"99999999999999999999K\" #! 'stack' must be a size such as");
    refused_after_good("rights = [\"fly\"] #! there is no right 'fly'");
    refused_after_good("regions = [{ name = \"r\" }] #! this region has no 'size'");
    refused_after_good(
        "devices = [{ name = \"nic\", ids = [1], interrupts = 1 }] #! this device has no 'vendor'",
    );
    refused("service = 3 #! must be a list of tables #! this manifest has no 'name' #! no [[service]]");
}

#[test]
fn every_mistake_is_told_at_once() {
    refused(
        r#"name = "test"
[[service]] #! no service has the right 'supervise' #! this service has no 'priority'
name = "a-name-that-is-too-long" #! 23 bytes long, 16 at most
budget = "0ms" #! 'budget' must not be zero
threads = 17 #! 'threads' must be a whole number from 1 to 16
stack = "1M" #! 'stack' must be from 4K to 512K
heap = "6K" #! 'heap' must be a multiple of 4K
[[service]]
name = "b"
priority = 16 #! 'priority' must be a whole number from 0 to 15
budget = "1ms"
calls = ["nobody", #! 'b' calls 'nobody', but there is no such service
    "nobody either"] #! 'b' calls 'nobody either'
"#,
    );
}

#[test]
fn names() {
    refused_after_good(
        "[[service]] #! a service 'disk' stands here twice; the other is in line 8\n\
         name = \"disk\"\npriority = 3\nbudget = \"1s\"",
    );
    refused_after_good(
        "ports = [{ name = \"Upper\", first = 1, count = 1 }] #! must be of lower-case letters",
    );
    refused_after_good("ports = [{ name = \"\", first = 1, count = 1 }] #! must be of lower-case letters");
    refused_after_good("calls = [\"disk\", \"disk\"] #! a call of 'disk' stands here twice");
    refused_after_good(
        "interrupts = [{ name = \"x\", line = 3 }]\n\
         devices = [{ name = \"x\", vendor = 1, ids = [1], interrupts = 1 }] #! an interrupt or device 'x' stands",
    );
}

#[test]
fn sizes_and_times() {
    refused_after_good("stack = \"516K\" #! 'stack' must be from 4K to 512K");
    refused_after_good("stack = \"0K\" #! 'stack' must be from 4K");
    refused_after_good("stack = \"5K\" #! 'stack' must be a multiple of 4K");
    refused_after_good("heap = \"1G\" #! 'heap' must be from 0K to 256M");
    refused_after_good("image = \"253M\" #! 'image' must be from 4K to 252M");
    refused_after_good("beat = \"0s\" #! 'beat' must not be zero");
    refused_after_good("beat = \"10us\" #! 'beat' must be from 1000 to");
    refused_after_good("core = 64 #! 'core' must be a whole number from 0 to 63");
    refused_after_good("regions = [{ name = \"r\", size = \"5G\" }] #! 'size' must be from 4K to 4G");
}

#[test]
fn who_may_call_whom() {
    refused_after_good("calls = [\"ghost\"] #! 'user' calls 'ghost', but there is no such service");
    refused_after_good("calls = [\"user\"] #! upward call: 'user' (priority 5)");
    refused_after_good(
        "[[service]]\nname = \"peer\"\npriority = 5\nbudget = \"1s\"\ncalls = [\"user\"] #! upward call: 'peer' (priority 5)",
    );
    refused(&GOOD.replace("calls = [\"supervisor\"]", "calls = [\"user\"] #! and 'user' has 5"));
    refused_after_good(
        "beat = \"1s\" #! missing capability: 'user' must beat, but 'supervisor' is not in its 'calls'",
    );
    refused_after_good("notifies = [{ service = \"ghost\", name = \"x\" }] #! 'user' notifies 'ghost'");
    refused_after_good("notifies = [{ service = \"user\", name = \"x\" }] #! 'user' cannot notify itself");
    refused_after_good("notifies = [{ name = \"x\" }] #! this notification has no 'service'");
}

#[test]
fn the_supervisor() {
    refused(
        "name = \"t\"\n[[service]] #! missing right: no service has the right 'supervise'\nname = \"a\"\npriority = 1\nbudget = \"1s\"",
    );
    refused_after_good(
        "rights = [\"inspect\",\n\"supervise\"] #! 'user' cannot supervise too: 'supervisor' does",
    );
    let idle = GOOD.replace("calls = [\"supervisor\"]", "");
    refused(&idle.replace("priority = 3", "priority = 0 #! priority 0 is the supervisor's alone"));
    refused(&GOOD.replace("priority = 0", "priority = 1 #! the supervisor must have priority 0"));
    refused(&GOOD.replace(
        "rights = [\"supervise\"]",
        "rights = [\"supervise\"]\nbeat = \"1s\" #! nobody it could beat to",
    ));
}

#[test]
fn what_is_given_twice() {
    refused_after_good(
        "ports = [{ name = \"pit\", first = 0x20, count = 1 }] #! which the kernel keeps for the interrupt controller (PIC 1)",
    );
    refused_after_good(
        "ports = [{ name = \"com\", first = 0x3f0, count = 9 }] #! overlap 0x3f8-0x3ff, which the kernel keeps",
    );
    refused_after_good("ports = [{ name = \"pci\", first = 0xcff, count = 1 }] #! PCI configuration");
    refused_after_good("ports = [{ name = \"all\", first = 0xfff0, count = 17 }] #! go past 0xffff");
    refused(&format!(
        "{}ports = [{{ name = \"b\", first = 0x2ff, count = 2 }}] #! overlap those of 'disk' ('a')",
        GOOD.replace("priority = 3", "priority = 3\nports = [{ name = \"a\", first = 0x2f8, count = 8 }]")
    ));
    refused(&format!(
        "{}interrupts = [{{ name = \"b\", line = 4 }}] #! interrupt line 4 is given twice, to 'disk' and to 'user'",
        GOOD.replace("priority = 3", "priority = 3\ninterrupts = [{ name = \"a\", line = 4 }]")
    ));
    refused_after_good(
        "interrupts = [{ name = \"x\", line = 16 }] #! 'line' must be a whole number from 0 to 15",
    );
    refused_after_good("interrupts = [{ name = \"x\", line = 2 }] #! joins the two PICs");
    refused(&format!(
        "{}devices = [{{ name = \"b\", vendor = 1, ids = [8, 7], interrupts = 1 }}] #! matches the same PCI functions",
        GOOD.replace(
            "priority = 3",
            "priority = 3\ndevices = [{ name = \"a\", vendor = 1, ids = [7], interrupts = 1 }]"
        )
    ));
    refused_after_good(
        "devices = [{ name = \"a\", vendor = 1, ids = [], interrupts = 1 }] #! must list 1 to 4",
    );
}

#[test]
fn overlapping_regions() {
    refused_after_good(
        "regions = [{ name = \"a\", size = \"8K\", address = 0x1_0000_0000 },\n\
         { name = \"b\", size = \"4K\", address = 0x1_0000_1000 }] #! overlapping regions: 'b' at 0x100001000",
    );
    // Without a page between them, running off the end of one would go unnoticed.
    refused_after_good(
        "regions = [{ name = \"a\", size = \"8K\", address = 0x1_0000_0000 },\n\
         { name = \"b\", size = \"4K\", address = 0x1_0000_2000 }] #! within a page of it",
    );
    refused_after_good(
        "regions = [{ name = \"a\", size = \"4K\" },\n{ name = \"a\", size = \"4K\" }] #! overlapping regions: a region 'a'",
    );
    refused_after_good("regions = [{ name = \"a\", size = \"4K\", address = 0x1000 }] #! 'address' must be");
    refused_after_good(
        "regions = [{ name = \"a\", size = \"4K\", address = 0x1_0000_0001 }] #! must begin at a page",
    );
    refused_after_good(
        "regions = [{ name = \"a\", size = \"8K\", address = 0x7ffe_ffff_f000 }] #! and end by",
    );
    refused_after_good(
        "regions = [{ name = \"c\", size = \"4K\" }] #! the region 'c' of 'user' has the name of its channel\n\
         [[channel]]\nname = \"c\"\nproducer = \"user\"\nconsumer = \"disk\"\nentries = 8\ndescriptor-bytes = 8",
    );
}

#[test]
fn channels_and_pools() {
    let channel = |rest: &str| refused_after_good(&format!("[[channel]]\nname = \"c\"\n{rest}"));
    channel(
        "producer = \"ghost\" #! missing capability: the producer of channel 'c' is 'ghost'\nconsumer = \"disk\"\nentries = 8\ndescriptor-bytes = 8",
    );
    channel(
        "producer = \"disk\"\nconsumer = \"ghost\" #! missing capability: the consumer of channel\nentries = 8\ndescriptor-bytes = 8",
    );
    channel(
        "producer = \"disk\"\nconsumer = \"user\"\nentries = 9 #! 'entries' must be a power of two\ndescriptor-bytes = 12 #! must be a multiple of 8",
    );
    refused_after_good(
        "[[channel]] #! has the same service at both ends\nname = \"c\"\nproducer = \"disk\"\nconsumer = \"disk\"\nentries = 8\ndescriptor-bytes = 8",
    );
    refused_after_good(
        "[[channel]] #! this channel has no 'consumer'\nname = \"c\"\nproducer = \"disk\"\nentries = 8\ndescriptor-bytes = 8",
    );
    refused_after_good(
        "[[pool]]\nname = \"p\"\nsize = \"4K\"\nholders = [\"disk\", \"ghost\"] #! missing capability: a holder of pool 'p' is 'ghost'",
    );
    refused_after_good(
        "[[pool]]\nname = \"p\"\nsize = \"4K\"\nholders = [\"disk\", \"disk\"] #! a holder 'disk' stands here twice",
    );
    refused_after_good("[[pool]] #! the pool 'p' has no holders\nname = \"p\"\nsize = \"4K\"");
    refused_after_good(
        "[[pool]]\nname = \"p\"\nsize = \"4K\"\nholders = [\"disk\"]\n[[pool]] #! a channel or pool 'p' stands here twice\nname = \"p\"\nsize = \"4K\"\nholders = [\"disk\"]",
    );
    refused_after_good(
        "notifies = [{ service = \"disk\", name = \"c\" }] #! 'disk' already knows the channel 'c' by this name\n\
         [[channel]]\nname = \"c\"\nproducer = \"supervisor\"\nconsumer = \"disk\"\nentries = 8\ndescriptor-bytes = 8",
    );
}

/// `count` inline tables, one a line; the mark goes to line `bad` of them.
fn many(key: &str, count: usize, bad: usize, mark: &str, table: impl Fn(usize) -> String) -> String {
    let tables = (0..count).map(|n| {
        let mark = if n == bad { format!(" #! {mark}") } else { String::new() };
        format!("{},{mark}\n", table(n))
    });
    format!("{key} = [\n{}]\n", tables.collect::<String>())
}

#[test]
fn the_limits_of_the_tables() {
    let service =
        |n: usize, more: &str| format!("[[service]]{more}\nname = \"s{n}\"\npriority = 9\nbudget = \"1s\"\n");
    let services: String = (0..29).map(|n| service(n, "")).collect();
    assert!(parse("good.toml", &format!("{GOOD}{services}")).is_ok(), "32 services fit");
    refused_after_good(&format!("{services}{}", service(29, " #! too many services: 32 at most")));

    let threads: String = (0..8).map(|n| service(n, "") + "threads = 15\n").collect();
    refused_after_good(&format!("{threads}{}threads = 6 #! too many threads: with 's8'", service(8, "")));

    let region = |n| format!("{{ name = \"r{n}\", size = \"4K\" }}");
    let regions = |service: usize| service_with(service, &many("regions", 64, 64, "", region));
    assert!(parse("good.toml", &format!("{GOOD}{}{}", regions(0), regions(1))).is_ok());
    let one =
        service_with(2, "regions = [{ name = \"r\", size = \"4K\" }] #! too many regions: 128 at most\n");
    refused_after_good(&format!("{}{}{one}", regions(0), regions(1)));

    let too_many = service_with(0, &many("regions", 65, 65, "", region));
    refused_after_good(
        &too_many.replace("[[service]]", "[[service]] #! too many capabilities for 's0': 64 at most"),
    );

    let device = |n| format!("{{ name = \"d{n}\", vendor = {n}, ids = [1], interrupts = 0 }}");
    let devices: String =
        (0..2).map(|s| service_with(s, &many("devices", 8, 8, "", |n| device(8 * s + n)))).collect();
    assert!(parse("good.toml", &format!("{GOOD}{devices}")).is_ok());
    let one = service_with(2, &format!("devices = [{}] #! too many devices: 16 at most\n", device(16)));
    refused_after_good(&format!("{devices}{one}"));

    let notify = |count| {
        many("notifies", count, 62, "too many notification bits for 'disk': 62 at most", |n| {
            format!("{{ service = \"disk\", name = \"n{n}\" }}")
        })
    };
    assert!(parse("good.toml", &format!("{GOOD}{}", notify(62))).is_ok());
    refused_after_good(&notify(63));
}

fn service_with(n: usize, more: &str) -> String {
    format!("[[service]]\nname = \"s{n}\"\npriority = 9\nbudget = \"1s\"\n{more}")
}
