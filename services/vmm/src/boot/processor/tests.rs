use super::*;

/// A descriptor taken apart as the processor does: base, limit in bytes, attributes in 12 bits.
fn load(descriptor: u64) -> (u64, u32, u16) {
    let limit = u32::try_from(descriptor & 0xffff | descriptor >> 32 & 0xf_0000).unwrap();
    let attributes = u16::try_from(descriptor >> 40 & 0xff | descriptor >> 44 & 0xf00).unwrap();
    let base = descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000;
    (base, if attributes & 0x800 != 0 { limit << 12 | 0xfff } else { limit }, attributes)
}

#[test]
fn the_entry_state_is_what_its_gdt_would_load() {
    let ProcessorState { system, .. } = linux_entry(GuestPhysAddr(0));
    let gdt = gdt();
    assert_eq!((system.gdtr.base, system.gdtr.limit as usize + 1), (layout::GDT.0, size_of_val(&gdt)));
    for segment in [system.es, system.cs, system.ss, system.ds, system.fs, system.gs, system.tr] {
        let loaded = load(gdt[usize::from(segment.selector / 8)]);
        assert_eq!(loaded, (segment.base, segment.limit, segment.attributes), "{:#x}", segment.selector);
    }
    // The values that Linux's own GDT has for these selectors, with the accessed bit.
    assert_eq!(gdt[2..4], [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
}

#[test]
fn the_entry_state_is_the_64_bit_boot_protocol() {
    let ProcessorState { registers, system } = linux_entry(GuestPhysAddr(0x100_0200));
    assert_eq!((registers.rip, registers.rsi, registers.rflags), (0x100_0200, 0x2000, 2));
    assert_eq!(
        (system.cs.selector, system.ss.selector, system.ds.selector, system.es.selector),
        (0x10, 24, 24, 24)
    );
    assert_eq!(system.cs.attributes & 0x600, 0x200, "L without D");
    assert_eq!((system.cr0, system.cr4, system.efer), (0x8000_0031, 0x20, 0x500));
    assert_eq!((system.cr3, system.cpl, system.xcr0, system.tsc_offset), (0x5000, 0, 1, 0));
    assert_eq!(
        (system.dr6, system.dr7, system.pat, system.reset_fpu),
        (0xffff_0ff0, 0x400, 0x0007_0406_0007_0406, 1)
    );
}

#[test]
fn after_a_reset_the_first_instruction_is_at_the_top_of_4_gib() {
    let ProcessorState { registers, system } = reset(0x00a2_0f10);
    assert_eq!(system.cs.base + registers.rip, 0xffff_fff0);
    assert_eq!((registers.rdx, registers.rflags, registers.rsp), (0x00a2_0f10, 2, 0));
    assert_eq!((system.cr0, system.cr4, system.efer, system.reset_fpu), (0x6000_0010, 0, 0, 1));
    assert_eq!(
        (system.idtr.limit, system.gdtr.limit, system.ldtr.limit, system.tr.limit),
        (65535, 65535, 65535, 65535)
    );
    assert_eq!((system.pat, system.xcr0), (0x0007_0406_0007_0406, 1));
}

#[test]
fn init_keeps_what_the_manual_says_and_resets_the_rest() {
    let before = SystemState {
        cr0: 0xe005_003b,
        cr2: 1,
        cr3: 0x1000,
        cr4: 0x6b0,
        efer: 0xd01,
        dr6: 1,
        dr7: 2,
        pat: 3,
        star: 4,
        lstar: 5,
        cstar: 6,
        sfmask: 7,
        kernel_gs_base: 8,
        sysenter_cs: 9,
        sysenter_esp: 10,
        sysenter_eip: 11,
        xcr0: 7,
        tsc_offset: 12,
        cpl: 3,
        reset_fpu: 1,
        gs: Segment { selector: 5, attributes: 6, limit: 7, base: 8 },
        ..SystemState::default()
    };
    let ProcessorState { registers, system } = init(&before, 0x600);
    assert_eq!(system.cr0, 0x6000_0010, "cache control and the fixed bit alone");
    assert_eq!((system.cr2, system.cr3, system.cr4, system.efer, system.cpl), (0, 0, 0, 0, 0));
    assert_eq!((system.dr6, system.dr7), (0xffff_0ff0, 0x400));
    assert_eq!(
        (system.gs.base, system.gs.selector, system.gs.attributes, system.gs.limit),
        (0, 0, 0x93, 0xffff)
    );
    assert_eq!((system.pat, system.star, system.lstar, system.cstar, system.sfmask), (3, 4, 5, 6, 7));
    assert_eq!((system.kernel_gs_base, system.xcr0, system.tsc_offset), (8, 7, 12));
    assert_eq!((system.sysenter_cs, system.sysenter_esp, system.sysenter_eip), (9, 10, 11));
    assert_eq!(system.reset_fpu, 0);
    assert_eq!((registers.rdx, registers.rip), (0x600, 0xfff0));
    let enabled = init(&SystemState { cr0: 0x8000_0031, ..before }, 0x600);
    assert_eq!(enabled.system.cr0, 0x10, "an enabled cache stays enabled");
}

#[test]
fn a_sipi_starts_at_its_page() {
    for (vector, selector, base) in [(0, 0, 0), (0x99, 0x9900, 0x9_9000), (0xff, 0xff00, 0xf_f000)] {
        let mut state = reset(0x600);
        let before = state;
        start_up(&mut state, vector);
        let cs = Segment { selector, base, ..before.system.cs };
        assert_eq!(state.system, SystemState { cs, ..before.system });
        assert_eq!((state.registers.rip, state.registers.rdx), (0, 0x600));
    }
}
