//! The DSDT: devices that cannot be probed, in AML (ACPI 6.5, 5.2.11.1 and chapter 20).

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope, ZERO};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{Platform, Processor, table};
use crate::{ports, power, rtc};

/// Revision 2: integers are 64 bits wide.
const REVISION: u8 = 2;
/// `_STA`: present, enabled, shown, functioning (ACPI 6.5, 6.3.7).
const WORKING: u8 = 0xf;

pub(super) fn dsdt(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    // PM1a_CNT.SLP_TYP, PM1b_CNT.SLP_TYP, two reserved elements (ACPI 6.5, 7.4.2).
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&power::SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]))
        .to_aml_bytes(&mut body);

    let com1 =
        IsaDevice { name: "COM1", id: "PNP0501", port: ports::COM1_PORT, ports: 8, irq: ports::COM1_GSI };
    let rtc = IsaDevice { name: "RTC_", id: "PNP0B00", port: rtc::INDEX_PORT, ports: 2, irq: rtc::GSI };
    let processors: Vec<_> = platform
        .processors
        .iter()
        .enumerate()
        .map(|(index, &processor)| ProcessorDevice { index, processor })
        .collect();
    let mut devices: Vec<&dyn Aml> = vec![&com1, &rtc];
    devices.extend(processors.iter().map(|processor| processor as &dyn Aml));
    Scope::new(Path::new("\\_SB_"), devices).to_aml_bytes(&mut body);

    table(*b"DSDT", REVISION, &body)
}

/// A device at fixed ports, with an edge-triggered interrupt that is active high and its own.
struct IsaDevice {
    name: &'static str,
    id: &'static str,
    port: u16,
    ports: u8,
    irq: u32,
}

impl Aml for IsaDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(self.port, self.port, 1, self.ports);
        let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
        let irq = Interrupt::new(consumer, edge_triggered, active_low, shared, self.irq);
        Device::new(
            Path::new(self.name),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new(self.id)),
                &Name::new(Path::new("_UID"), &ZERO),
                &Name::new(Path::new("_STA"), &WORKING),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &irq])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// A processor: `_UID` ties it to its entry in the MADT (ACPI 6.5, 8.4).
struct ProcessorDevice {
    index: usize,
    processor: Processor,
}

impl Aml for ProcessorDevice {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        const { assert!(super::MAX_PROCESSORS <= 0x1000, "three hexadecimal digits") };
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        // Not `format!`: the precompiled one unwinds, which nothing here can.
        let mut name = String::from("C");
        name.extend([8, 4, 0].map(|shift| char::from(DIGITS[self.index >> shift & 0xf])));
        Device::new(
            Path::new(&name),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0007"),
                &Name::new(Path::new("_UID"), &self.processor.apic_id),
                &Name::new(Path::new("_STA"), &WORKING),
                &Name::new(Path::new("_PXM"), &self.processor.domain.0),
            ],
        )
        .to_aml_bytes(sink);
    }
}
