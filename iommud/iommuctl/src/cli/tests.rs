//! Command lines and what they print, word by word.

use iommu_protocol::ids::PciAddress;

use super::*;

fn run_line(line: &str) -> (String, Result<Found, CommandError>) {
    let words = std::iter::once("iommuctl").chain(line.split_whitespace());
    let arguments = Arguments::try_parse_from(words).unwrap();
    let mut out = Vec::new();
    let result = run(&arguments, Look::default(), &mut out);
    (String::from_utf8(out).unwrap(), result)
}

fn refused(line: &str) -> clap::Error {
    let words = std::iter::once("iommuctl").chain(line.split_whitespace());
    Arguments::try_parse_from(words).unwrap_err()
}

#[test]
fn the_description_of_the_command_line_is_sound() {
    use clap::CommandFactory;
    Arguments::command().debug_assert();
}

#[test]
fn help_succeeds_and_a_wrong_line_is_status_2() {
    for line in ["--help", "decode --help", "help decode", "--version"] {
        assert_eq!(refused(line).exit_code(), 0, "{line}");
    }
    for line in ["", "decode", "frobnicate", "decode --fiels x", "completions tcsh"] {
        assert_eq!(refused(line).exit_code(), 2, "{line:?}");
    }
    let help = refused("decode --help").to_string();
    assert!(help.contains("A binary table or the text of acpidump; - is standard input"), "{help}");
}

#[test]
fn addresses_are_taken_in_the_notations_that_people_have() {
    let expected = PciAddress::new(0, 0, 4, 0).unwrap();
    for text in ["0000--00--04.0", "0000:00:04.0", "00:04.0", "00--04.0"] {
        assert_eq!(arguments::address(text), Ok(expected), "{text}");
    }
    for text in ["", "4", "00:20.0", "00:04.8", "0:0:0:4.0", "0000:00:04"] {
        let refused = arguments::address(text);
        assert_eq!(refused, Err("an address looks like 0000:00:04.0".to_owned()), "{text}");
    }
}

/// Every command and option has a text, and manual page and completions have it.
#[test]
fn manual_and_completions_are_made_of_the_same_text() {
    use clap::CommandFactory;
    let (page, _) = run_line("man");
    let (bash, _) = run_line("completions bash");
    let (fish, _) = run_line("completions fish");
    for command in Arguments::command().get_subcommands() {
        let about = command.get_about().unwrap().to_string();
        assert!(page.contains(&about.replace('-', "\\-")), "{about}: {page}");
        assert!(fish.contains(&about.replace('\'', "\\'")), "{about}: {fish}");
        assert!(bash.contains(command.get_name()), "{}", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {argument}", command.get_name());
        }
    }
    assert!(page.contains("iommud is not there"), "exit statuses: {page}");
}

/// A DMAR made by hand: header, 46 address bits, one DRHD with INCLUDE_PCI_ALL at 0xfed90000.
const DMAR: [u8; 64] = {
    let mut bytes = [0; 64];
    let head = *b"DMAR\x40\0\0\0\x01\x00OEM   TABLE   ";
    let mut at = 0;
    while at < head.len() {
        bytes[at] = head[at];
        at += 1;
    }
    bytes[36] = 45;
    (bytes[50], bytes[52]) = (16, 1);
    (bytes[58], bytes[59]) = (0xd9, 0xfe);
    bytes
};

fn table() -> Vec<u8> {
    let mut bytes = DMAR.to_vec();
    bytes[9] = 0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
    bytes
}

fn file(name: &str, content: &[u8]) -> std::path::PathBuf {
    let path = std::env::temp_dir().join(format!("iommuctl-{}-{name}", std::process::id()));
    std::fs::write(&path, content).unwrap();
    path
}

#[test]
fn decode_prints_the_summary_and_fields_on_demand() {
    let path = file("dmar", &table());
    let (summary, result) = run_line(&format!("decode {}", path.display()));
    assert_eq!(result.unwrap(), Found::Nothing);
    let expected = "\
DMAR table of OEM, revision 1, 64 bytes
  iommud would:
    use unit 0 (VT-d, segment 0, registers 0xfed90000 to 0xfed90fff) for
      all devices that no other unit names
  anomalies: none
";
    assert_eq!(summary, expected);
    let (fields, _) = run_line(&format!("decode --fields {}", path.display()));
    let rest = fields.strip_prefix(expected).unwrap();
    assert!(rest.starts_with("  fields:\n    signature: \"DMAR\"\n    length: 64\n"), "{rest}");
    assert!(rest.contains("      DRHD at offset 48\n        type: 0x0\n"), "{rest}");
    let (json, _) = run_line(&format!("decode --json {}", path.display()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], "iommuctl.decode/1");
    assert_eq!(json["tables"][0]["file"], path.display().to_string());
    assert_eq!(
        json["tables"][0]["table"]["structures"][0]["register_base_address"],
        0xfed9_0000u32
    );
    std::fs::remove_file(path).unwrap();
}

#[test]
fn decode_of_a_dump_shows_each_table_once_with_its_file() {
    let mut text = String::new();
    for place in 0..2 {
        text.push_str(&format!("DMAR @ 0x000000000000000{place}\n"));
        for (line, chunk) in table().chunks(16).enumerate() {
            let pairs: Vec<String> = chunk.iter().map(|byte| format!("{byte:02X}")).collect();
            text.push_str(&format!("    {:04X}: {}  ABCD\n", line * 16, pairs.join(" ")));
        }
        text.push('\n');
    }
    let path = file("dump", text.as_bytes());
    let (text, _) = run_line(&format!("decode {}", path.display()));
    let heading = format!("{}:\nDMAR table of OEM, revision 1, 64 bytes\n", path.display());
    assert_eq!(text.matches(&heading).count(), 2, "{text}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn replay_says_what_is_wrong_with_which_record() {
    let path = file("trace", &[0; 64]);
    let (text, result) = run_line(&format!("replay {}", path.display()));
    assert_eq!(result.unwrap(), Found::Something);
    let problem = "no kind of record has the code 0";
    let expected = "1 records, 0 lives, 0 events replayed\nrecord 0 (unreadable): ";
    assert_eq!(text, format!("{expected}{problem}\n"));
    let (json, _) = run_line(&format!("replay --json {}", path.display()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["schema"], &json["records"]), (&"iommuctl.replay/1".into(), &1.into()));
    let finding = serde_json::json!({ "record": 0, "kind": null, "problem": problem });
    assert_eq!(json["finding"], finding);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_file_that_is_not_there_is_status_1() {
    let error = run_line("decode /nonexistent").1.unwrap_err();
    assert_eq!(error.exit_status(), 1);
    assert!(error.to_string().starts_with("/nonexistent: "), "{error}");
}

/// Runs a command over fixed texts.
fn show_line(line: &str) -> (String, Result<Found, CommandError>) {
    let words = std::iter::once("iommuctl").chain(line.split_whitespace());
    let arguments = Arguments::try_parse_from(words).unwrap();
    let mut out = Vec::new();
    let json = arguments.global.json;
    let server = crate::tree::tests::server();
    let Command::Show(command) = &arguments.command else { panic!("{line} needs no texts") };
    let result = show(command, &server, json, Look::default(), &mut out);
    (String::from_utf8(out).unwrap(), result)
}

#[test]
fn status_is_0_when_all_is_confined() {
    let (text, found) = show_line("status");
    let expected = "\
confinement: on
unit 0: vt-d enabled
firmware table: DMAR
policy: compat
groups: 2
devices: 3
sessions: 1
";
    assert_eq!((text.as_str(), found.unwrap()), (expected, Found::Nothing));
}

#[test]
fn a_domain_is_listed_in_order_of_addresses() {
    let (text, _) = show_line("domain 3");
    let expected = "\
domain 3 of process 12
  device 0000:01:00.0, attached
  addresses 0x1000 to 0xffffffff, pages of 4 KiB, 2 MiB
  2 mappings, 4293844992 bytes free
  0x10000 to 0x10fff              buffer 0 of 0000:01:00.0: 4 KiB from byte 0, read only
  0x200000 to 0x20ffff            buffer 1 of 0000:01:00.0: 64 KiB, scattered, read and write
  0xfee00000 to 0xfeefffff        reserved: interrupts
  0x300000 to 0x301fff            buffer 2 of 0000:01:00.0: 8 KiB, nothing granted
";
    let name = crate::tree::process_name(12).map_or(String::new(), |name| format!(" ({name})"));
    assert_eq!(text.replacen(&name, "", 1), expected);
    let error = show_line("domain 4").1.unwrap_err();
    assert_eq!(error.to_string(), "there is no domain 4 of an owner");
    assert_eq!(error.exit_status(), 1);
}

#[test]
fn a_device_is_shown_with_its_group() {
    let (text, _) = show_line("device 01:00.0");
    assert!(text.contains("  group 2:\n    0000:00:1c.0 PCI bridge"), "{text}");
    assert!(text.contains("  requester ids: 01:00.0\n"), "{text}");
    let error = show_line("device 09:00.0").1.unwrap_err();
    assert_eq!(error.to_string(), "there is no device 0000:09:00.0");
}

#[test]
fn faults_and_their_explanation() {
    let (text, _) = show_line("faults");
    let end = "tried to write memory at 0x11010 and was stopped: page not present.\n";
    assert!(text.starts_with("#4 0000:01:00.0 (") && text.ends_with(end), "{text}");
    let (text, _) = show_line("explain");
    assert!(text.contains("The address is 16 bytes behind the end of buffer 0"), "{text}");
    let error = show_line("explain 9").1.unwrap_err();
    assert_eq!(error.to_string(), "there is no fault 9 in the log of the latest");
    let (json, _) = show_line("explain 4 --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["faults"][0]["cause"], "behind-mapping");
}

#[test]
fn units_are_shown_with_all_that_they_say() {
    let (text, _) = show_line("units");
    assert_eq!(text, "unit 0\n  kind: vt-d\n  state: enabled\n  segment: 0000\n");
    assert_eq!(show_line("units 1").1.unwrap_err().to_string(), "there is no unit 1");
}

#[test]
fn pictures_go_to_standard_output_on_demand() {
    for line in ["tree --svg -", "domain 3 --svg -"] {
        let (text, _) = show_line(line);
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"), "{line}: {text}");
    }
    assert!(show_line("tree --dot").0.starts_with("digraph iommu {\n"));
    assert_eq!(refused("tree --dot --svg x").exit_code(), 2);
}

#[test]
fn top_takes_a_pace_and_an_end() {
    let (text, found) = show_line("top --once");
    assert_eq!(found.unwrap(), Found::Nothing);
    assert!(
        text.starts_with("iommud, since it started: 40 calls, 1 refused, 3 faults (1 of "),
        "{text}"
    );
    let (text, _) = show_line("top -i 0.1 -n 2");
    assert_eq!(text.matches("iommud, per second over 0.").count(), 2, "{text}");
    for wrong in
        ["-i 0", "-i 0.05", "-i 3601", "-i nan", "-i x", "-n 0", "--once -n 1", "--once -i 2"]
    {
        assert_eq!(refused(&format!("top {wrong}")).exit_code(), 2, "{wrong}");
    }
    let second = arguments::interval("1.5");
    assert_eq!(second, Ok(std::time::Duration::from_millis(1500)));
}

/// Every command that prints JSON names its schema.
#[test]
fn json_documents_name_their_schema() {
    for command in ["status", "units", "metrics", "faults", "explain", "tree"] {
        let (text, _) = show_line(&format!("{command} --json"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["schema"], format!("iommuctl.{command}/1"));
    }
    for (line, schema) in
        [("device 01:00.0", "device"), ("domain 3", "domain"), ("top --once", "top")]
    {
        let (text, _) = show_line(&format!("{line} --json"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["schema"], format!("iommuctl.{schema}/1"));
    }
}

#[test]
fn a_policy_that_is_wrong_is_status_3_and_one_that_is_not_there_is_1() {
    let good = file("good.toml", b"default = \"strict\"\n");
    let bad = file("bad.toml", b"default = \"strikt\"\n");
    let (text, found) = show_line(&format!("policy check {}", good.display()));
    assert_eq!(found.unwrap(), Found::Nothing);
    assert!(text.starts_with("default: strict\n0000:00:04.0 strict default  device"), "{text}");
    let (text, found) = show_line(&format!("policy check {}", bad.display()));
    assert_eq!(found.unwrap(), Found::Something);
    assert!(text.contains(": line 1: unknown variant `strikt`"), "{text}");
    assert_eq!(show_line("policy check /nonexistent").1.unwrap_err().exit_status(), 1);
    for path in [good, bad] {
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn without_a_server_the_status_is_4() {
    let (_, result) = run_line("--socket /nonexistent/iommu.sock status");
    assert_eq!(result.unwrap_err().exit_status(), 4);
}

#[test]
fn audit_of_what_is_no_linux_host_is_status_1() {
    let error = run_line("audit --root /nonexistent").1.unwrap_err();
    assert_eq!(error.exit_status(), 1);
    assert_eq!(error.to_string(), "there is no /nonexistent/sys: this judges Linux hosts");
}
