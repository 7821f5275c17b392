//! What holds for every manifest that compiles.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use ipc::abi::{MAX_THREADS, PAGE_SIZE, REGION_BASE, USER_BITS, USER_END};
use ipc::guest::{Share, Shares, extra_frames};
use ipc::image::{GUEST_CAPABILITY, ObjectDescriptor, RegionKind, ServiceDescriptor, SystemDescriptor};
use proptest::prelude::*;

use super::{GOOD, parse};
use crate::manifest::{MAX_BLOB_BYTES, Manifest, Overrides};

/// What must hold for every compiled manifest.
fn sound(system: &SystemDescriptor, services: &[ServiceDescriptor]) {
    assert_eq!(usize::from(system.service_count), services.len());
    let mut raised: HashMap<u8, u64> = HashMap::new();
    let mut holders: HashMap<u8, usize> = HashMap::new();
    let mut guest_holders = BTreeSet::new();
    for (number, service) in services.iter().enumerate() {
        let mut ranges = Vec::new();
        let mut own_bits = 0_u64;
        let mut take_bits = |bits: u64| {
            assert_eq!(own_bits & bits, 0, "a bit is given twice");
            own_bits |= bits;
        };
        for capability in &service.capabilities {
            match capability.object {
                ObjectDescriptor::Endpoint { service: callee } => {
                    assert!(services[usize::from(callee)].priority < service.priority);
                }
                ObjectDescriptor::Notification { service: target, bits } => {
                    assert_eq!(bits.count_ones(), 1);
                    assert_eq!(bits & !USER_BITS, 0);
                    if usize::from(target) == number {
                        take_bits(bits);
                    } else {
                        *raised.entry(target).or_default() |= bits;
                    }
                }
                ObjectDescriptor::Region { region, address, writable } => {
                    let is_blob = system.regions[usize::from(region)].kind == RegionKind::Blob;
                    assert_eq!(writable, !is_blob);
                    *holders.entry(region).or_default() += 1;
                    let pages = u64::from(system.regions[usize::from(region)].pages);
                    let bytes = if is_blob { MAX_BLOB_BYTES } else { pages * PAGE_SIZE as u64 };
                    assert!(bytes > 0 && address.is_multiple_of(PAGE_SIZE as u64));
                    ranges.push((address, address + bytes));
                }
                ObjectDescriptor::GuestFrames { address } => {
                    let guest = system.guest.as_ref().unwrap();
                    let most = guest.shares.iter().map(|share| share.pages).max().unwrap();
                    let frames = most + u64::from(guest.private_pages) + extra_frames(guest.shares.len()) + 1;
                    assert_eq!((guest.carrier.map(usize::from), address % (2 << 20)), (Some(number), 0));
                    ranges.push((address, address + (frames * 4096).next_multiple_of(2 << 20)));
                }
                ObjectDescriptor::Interrupt { bits, .. } => take_bits(bits),
                ObjectDescriptor::Ports { .. } => {}
                ObjectDescriptor::Device { device, address, first_bit } => {
                    let device = &system.devices[usize::from(device)];
                    (0..device.interrupts).for_each(|n| take_bits(1 << (first_bit + n)));
                    assert!(address.is_multiple_of(64 << 20));
                    ranges.push((address, address + (64 << 20)));
                }
                ObjectDescriptor::Guest => {
                    assert_eq!(capability.name, GUEST_CAPABILITY);
                    assert!(guest_holders.insert(number));
                }
            }
        }
        ranges.sort_unstable();
        assert!(ranges.iter().all(|(start, end)| *start >= REGION_BASE && *end <= USER_END));
        assert!(ranges.windows(2).all(|pair| pair[0].1 + PAGE_SIZE as u64 <= pair[1].0), "{ranges:x?}");
        let known = services[number].capabilities.iter().filter_map(|capability| match capability.object {
            ObjectDescriptor::Notification { service, bits } if usize::from(service) == number => Some(bits),
            _ => None,
        });
        let known: u64 = known.fold(0, |all, bits| all | bits);
        assert_eq!(known & !own_bits, 0);
    }
    for (target, bits) in raised {
        let told = services[usize::from(target)].capabilities.iter().filter_map(|c| match c.object {
            ObjectDescriptor::Notification { service, bits } if service == target => Some(bits),
            _ => None,
        });
        assert_eq!(told.fold(0, |all, bits| all | bits), bits, "a service knows every bit raised at it");
    }
    for (index, region) in (0_u8..).zip(&system.regions) {
        let count = holders.get(&index).copied().unwrap_or(0);
        match region.kind {
            RegionKind::Private | RegionKind::Kept | RegionKind::Blob => assert_eq!(count, 1),
            RegionKind::Shared => assert_eq!(count, 2),
            RegionKind::Dma => assert!(count >= 1),
        }
    }
    let serving = system.guest.as_ref().map_or_else(BTreeSet::new, |guest| {
        let servers = [guest.platform, guest.memory, guest.placement].into_iter().chain(guest.carrier);
        let servers: Vec<_> = servers.map(usize::from).collect();
        assert_eq!(guest.shares.len() > 1, guest.carrier.is_some());
        let vcpus = guest.shares.iter().map(|share| share.vcpus).max().unwrap();
        assert!(servers.iter().all(|server| services[*server].priority < guest.priority));
        assert!((1..=64).contains(&vcpus));
        let threads: usize = services.iter().map(|service| usize::from(service.threads)).sum();
        assert!(threads + usize::from(vcpus) <= MAX_THREADS);
        servers.into_iter().collect()
    });
    assert_eq!(guest_holders, serving, "the guest is given to those that serve it");
    let mut buffer = vec![0; 1 << 16];
    for service in services {
        let bytes = postcard::to_slice(service, &mut buffer).unwrap();
        assert_eq!(postcard::from_bytes::<ServiceDescriptor>(bytes).unwrap(), *service);
    }
    let bytes = postcard::to_slice(system, &mut buffer).unwrap();
    assert_eq!(postcard::from_bytes::<SystemDescriptor>(bytes).unwrap(), *system);
}

/// One random part of a manifest: which service it goes to, and numbers to make it of.
type Part = (u8, usize, usize, u16);

/// A sound manifest made of random parts. Services' priorities fall with their number, so calls go to smaller ones.
fn manifest_of(count: usize, parts: &[Part]) -> String {
    let mut own = vec![HashMap::<&str, Vec<String>>::new(); count];
    let mut rest = String::new();
    for (n, &(kind, first, second, size)) in parts.iter().enumerate() {
        let (a, b) = (first % count, second % count);
        let pages = usize::from(size) % 64 + 1;
        let push = |own: &mut Vec<HashMap<&str, Vec<String>>>, key, text| {
            let list: &mut Vec<String> = own[a].entry(key).or_default();
            if !list.contains(&text) {
                list.push(text);
            }
        };
        match kind % 8 {
            0 if b < a => push(&mut own, "calls", format!("\"s{b}\"")),
            1 if a != b => push(&mut own, "notifies", format!("{{ service = \"s{b}\", name = \"n{n}\" }}")),
            2 => push(
                &mut own,
                "regions",
                format!("{{ name = \"r{n}\", size = \"{}K\", kept = {} }}", pages * 4, size > 99),
            ),
            3 => {
                let address = REGION_BASE + (n * 256 + pages) as u64 * PAGE_SIZE as u64;
                let text = format!("{{ name = \"r{n}\", size = \"{}K\", address = {address} }}", pages * 4);
                push(&mut own, "regions", text);
            }
            4 if n < 16 => push(
                &mut own,
                "devices",
                format!("{{ name = \"d{n}\", vendor = {n}, ids = [{size}], interrupts = {} }}", pages % 4),
            ),
            5 if a != b => {
                rest += &format!(
                    "[[channel]]\nname = \"c{n}\"\nproducer = \"s{a}\"\nconsumer = \"s{b}\"\nentries = {}\ndescriptor-bytes = {}\n",
                    2 << (pages % 9),
                    8 * pages
                );
            }
            6 => {
                let holders = if a == b { format!("\"s{a}\"") } else { format!("\"s{a}\", \"s{b}\"") };
                rest +=
                    &format!("[[pool]]\nname = \"p{n}\"\nsize = \"{}K\"\nholders = [{holders}]\n", pages * 4);
            }
            7 => push(
                &mut own,
                "ports",
                format!("{{ name = \"p{n}\", first = {}, count = 4 }}", 0x1000 + n * 4),
            ),
            _ => {}
        }
    }
    let mut text = "name = \"random\"\n".to_owned();
    for (n, lists) in own.iter().enumerate() {
        let rights = if n == 0 { "rights = [\"supervise\"]\n" } else { "" };
        text += &format!("[[service]]\nname = \"s{n}\"\npriority = {n}\nbudget = \"1ms\"\n{rights}");
        for (key, list) in lists {
            text += &format!("{key} = [{}]\n", list.join(", "));
        }
    }
    text + &rest
}

proptest! {
    #[test]
    fn what_compiles_is_sound(count in 1_usize..16, parts in proptest::collection::vec(any::<Part>(), 0..40)) {
        let text = manifest_of(count, &parts);
        let parsed = parse("random.toml", &text);
        // A device alone takes up to ten capabilities: a manifest that wants more than a table holds, and is refused for
        // nothing else, is not one of those that this is about. The others are as many as ever.
        let too_many = |mistakes: &dyn std::fmt::Display| {
            mistakes.to_string().lines().all(|line| line.contains(": too many capabilities for '"))
        };
        prop_assume!(!parsed.as_ref().is_err_and(|mistakes| too_many(mistakes)));
        let manifest = parsed.unwrap_or_else(|e| panic!("{e}\n{text}"));
        sound(&manifest.system, &manifest.descriptors);
    }

    #[test]
    fn no_text_panics(text in ".{0,200}", at in any::<proptest::sample::Index>()) {
        let _ = parse("random.toml", &text);
        let mut good = GOOD.to_owned();
        let mut at = at.index(good.len());
        while !good.is_char_boundary(at) { at -= 1; }
        good.insert_str(at, &text);
        let _ = parse("random.toml", &good);
    }
}

#[test]
fn both_ends_of_a_channel_know_each_other() {
    let text = format!(
        "{GOOD}[[channel]]\nname = \"c\"\nproducer = \"user\"\nconsumer = \"disk\"\nentries = 8\ndescriptor-bytes = 32"
    );
    let manifest = parse("good.toml", &text).unwrap();
    let named = |service: usize| {
        let capabilities = manifest.descriptors[service].capabilities.iter();
        capabilities.filter(|c| c.name == "c").map(|c| c.object).collect::<Vec<_>>()
    };
    let region = ObjectDescriptor::Region { region: 0, address: REGION_BASE, writable: true };
    let at = |service| ObjectDescriptor::Notification { service, bits: 1 };
    assert_eq!(named(1), [region, at(2), at(1)]);
    assert_eq!(named(2), [region, at(1), at(2)]);
    assert_eq!(manifest.system.regions[0].kind, RegionKind::Shared);
}

#[test]
fn every_manifest_of_the_project_is_sound() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files =
        ["images", "tests/images"].iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
    let files = files.map(|file| file.unwrap().path());
    let mut count = 0;
    for file in files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")) {
        let manifest =
            Manifest::load(&file, &Overrides::default()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        sound(&manifest.system, &manifest.descriptors);
        count += 1;
    }
    assert!(count > 1);
}

#[test]
fn the_default_image_has_the_services_of_a_node() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest = Manifest::load(&root.join("images/unum.toml"), &Overrides::default()).unwrap();
    let names: Vec<_> = manifest.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["supervisor", "interconnect", "ept", "scheduler", "vmm", "health"]);
    // The platform may wait for a page of a node that is lost, until that is seen.
    let beats: Vec<_> = manifest.descriptors[1..].iter().map(|service| service.beat_ms).collect();
    assert_eq!(beats, [2000, 2000, 2000, 5000, 2000]);
    let guest = manifest.system.guest.unwrap();
    assert_eq!((guest.platform, guest.memory, guest.placement), (4, 2, 3));
    assert_eq!((guest.carrier, guest.private_pages, guest.priority), (Some(1), 2048, 12));
    let share = |node| Share { node, vcpus: 1, pages: 65_536 };
    assert_eq!(guest.shares, Shares::from_array([share(1), share(2)]));
    let blobs = manifest.system.regions.iter().filter(|region| region.kind == RegionKind::Blob);
    let blobs: Vec<_> = blobs.map(|region| region.name.as_str()).collect();
    assert_eq!(blobs, ["guest-config", "guest-kernel", "guest-initrd"]);
}
