//! Keys: what X11 and web pages call them, and what QEMU does.

/// A key of a keyboard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// QEMU's name (`QKeyCode`).
    pub(super) qcode: &'static str,
    /// The place on the keyboard, as the DOM has it (`KeyboardEvent.code`).
    code: &'static str,
    /// X11 keysyms that it gives on an American keyboard; other keyboards' letters have the
    /// place that the guest's own layout gives them.
    plain: &'static [u32],
    /// The same with the shift key.
    shifted: &'static [u32],
}

const fn key(
    qcode: &'static str,
    code: &'static str,
    plain: &'static [u32],
    shifted: &'static [u32],
) -> Key {
    Key {
        qcode,
        code,
        plain,
        shifted,
    }
}

/// All keys that are passed on.
#[rustfmt::skip]
const KEYS: &[Key] = &[
    key("esc", "Escape", &[0xFF1B], &[]),
    key("1", "Digit1", &[0x31], &[0x21]),
    key("2", "Digit2", &[0x32], &[0x40]),
    key("3", "Digit3", &[0x33], &[0x23]),
    key("4", "Digit4", &[0x34], &[0x24]),
    key("5", "Digit5", &[0x35], &[0x25]),
    key("6", "Digit6", &[0x36], &[0x5E]),
    key("7", "Digit7", &[0x37], &[0x26]),
    key("8", "Digit8", &[0x38], &[0x2A]),
    key("9", "Digit9", &[0x39], &[0x28]),
    key("0", "Digit0", &[0x30], &[0x29]),
    key("minus", "Minus", &[0x2D], &[0x5F]),
    key("equal", "Equal", &[0x3D], &[0x2B]),
    key("backspace", "Backspace", &[0xFF08], &[]),
    // With shift it has a keysym of its own, and is the same key.
    key("tab", "Tab", &[0xFF09, 0xFE20], &[]),
    key("q", "KeyQ", &[0x71], &[0x51]),
    key("w", "KeyW", &[0x77], &[0x57]),
    key("e", "KeyE", &[0x65], &[0x45]),
    key("r", "KeyR", &[0x72], &[0x52]),
    key("t", "KeyT", &[0x74], &[0x54]),
    key("y", "KeyY", &[0x79], &[0x59]),
    key("u", "KeyU", &[0x75], &[0x55]),
    key("i", "KeyI", &[0x69], &[0x49]),
    key("o", "KeyO", &[0x6F], &[0x4F]),
    key("p", "KeyP", &[0x70], &[0x50]),
    key("bracket_left", "BracketLeft", &[0x5B], &[0x7B]),
    key("bracket_right", "BracketRight", &[0x5D], &[0x7D]),
    // A line feed is what some clients make of a newline.
    key("ret", "Enter", &[0xFF0D, 0xFF0A], &[]),
    key("ctrl", "ControlLeft", &[0xFFE3], &[]),
    key("a", "KeyA", &[0x61], &[0x41]),
    key("s", "KeyS", &[0x73], &[0x53]),
    key("d", "KeyD", &[0x64], &[0x44]),
    key("f", "KeyF", &[0x66], &[0x46]),
    key("g", "KeyG", &[0x67], &[0x47]),
    key("h", "KeyH", &[0x68], &[0x48]),
    key("j", "KeyJ", &[0x6A], &[0x4A]),
    key("k", "KeyK", &[0x6B], &[0x4B]),
    key("l", "KeyL", &[0x6C], &[0x4C]),
    key("semicolon", "Semicolon", &[0x3B], &[0x3A]),
    key("apostrophe", "Quote", &[0x27], &[0x22]),
    key("grave_accent", "Backquote", &[0x60], &[0x7E]),
    key("shift", "ShiftLeft", &[0xFFE1], &[]),
    key("backslash", "Backslash", &[0x5C], &[0x7C]),
    key("z", "KeyZ", &[0x7A], &[0x5A]),
    key("x", "KeyX", &[0x78], &[0x58]),
    key("c", "KeyC", &[0x63], &[0x43]),
    key("v", "KeyV", &[0x76], &[0x56]),
    key("b", "KeyB", &[0x62], &[0x42]),
    key("n", "KeyN", &[0x6E], &[0x4E]),
    key("m", "KeyM", &[0x6D], &[0x4D]),
    key("comma", "Comma", &[0x2C], &[0x3C]),
    key("dot", "Period", &[0x2E], &[0x3E]),
    key("slash", "Slash", &[0x2F], &[0x3F]),
    key("shift_r", "ShiftRight", &[0xFFE2], &[]),
    key("kp_multiply", "NumpadMultiply", &[0xFFAA], &[]),
    // Some clients say Meta where the key has Alt.
    key("alt", "AltLeft", &[0xFFE9, 0xFFE7], &[]),
    key("spc", "Space", &[0x20, 0xA0], &[]),
    key("caps_lock", "CapsLock", &[0xFFE5], &[]),
    key("f1", "F1", &[0xFFBE], &[]),
    key("f2", "F2", &[0xFFBF], &[]),
    key("f3", "F3", &[0xFFC0], &[]),
    key("f4", "F4", &[0xFFC1], &[]),
    key("f5", "F5", &[0xFFC2], &[]),
    key("f6", "F6", &[0xFFC3], &[]),
    key("f7", "F7", &[0xFFC4], &[]),
    key("f8", "F8", &[0xFFC5], &[]),
    key("f9", "F9", &[0xFFC6], &[]),
    key("f10", "F10", &[0xFFC7], &[]),
    key("f11", "F11", &[0xFFC8], &[]),
    key("f12", "F12", &[0xFFC9], &[]),
    key("num_lock", "NumLock", &[0xFF7F], &[]),
    key("scroll_lock", "ScrollLock", &[0xFF14], &[]),
    // On the number pad the guest's own lock says what they are.
    key("kp_7", "Numpad7", &[0xFFB7, 0xFF95], &[]),
    key("kp_8", "Numpad8", &[0xFFB8, 0xFF97], &[]),
    key("kp_9", "Numpad9", &[0xFFB9, 0xFF9A], &[]),
    key("kp_subtract", "NumpadSubtract", &[0xFFAD], &[]),
    key("kp_4", "Numpad4", &[0xFFB4, 0xFF96], &[]),
    key("kp_5", "Numpad5", &[0xFFB5, 0xFF9D], &[]),
    key("kp_6", "Numpad6", &[0xFFB6, 0xFF98], &[]),
    key("kp_add", "NumpadAdd", &[0xFFAB], &[]),
    key("kp_1", "Numpad1", &[0xFFB1, 0xFF9C], &[]),
    key("kp_2", "Numpad2", &[0xFFB2, 0xFF99], &[]),
    key("kp_3", "Numpad3", &[0xFFB3, 0xFF9B], &[]),
    key("kp_0", "Numpad0", &[0xFFB0, 0xFF9E], &[]),
    key("kp_decimal", "NumpadDecimal", &[0xFFAE, 0xFF9F, 0xFFAC], &[]),
    key("kp_enter", "NumpadEnter", &[0xFF8D], &[]),
    key("kp_divide", "NumpadDivide", &[0xFFAF], &[]),
    key("kp_equals", "NumpadEqual", &[0xFFBD], &[]),
    key("less", "IntlBackslash", &[], &[]),
    key("ro", "IntlRo", &[], &[]),
    key("yen", "IntlYen", &[0xA5], &[]),
    key("henkan", "Convert", &[0xFF23], &[]),
    key("muhenkan", "NonConvert", &[0xFF22], &[]),
    key("katakanahiragana", "KanaMode", &[0xFF27], &[]),
    key("lang1", "Lang1", &[0xFF31], &[]),
    key("lang2", "Lang2", &[0xFF34], &[]),
    key("ctrl_r", "ControlRight", &[0xFFE4], &[]),
    key("sysrq", "PrintScreen", &[0xFF61, 0xFF15], &[]),
    // The last ones: what a European keyboard has there.
    key("alt_r", "AltRight", &[0xFFEA, 0xFFE8, 0xFE03, 0xFF7E], &[]),
    key("home", "Home", &[0xFF50], &[]),
    key("up", "ArrowUp", &[0xFF52], &[]),
    key("pgup", "PageUp", &[0xFF55], &[]),
    key("left", "ArrowLeft", &[0xFF51], &[]),
    key("right", "ArrowRight", &[0xFF53], &[]),
    key("end", "End", &[0xFF57], &[]),
    key("down", "ArrowDown", &[0xFF54], &[]),
    key("pgdn", "PageDown", &[0xFF56], &[]),
    key("insert", "Insert", &[0xFF63], &[]),
    key("delete", "Delete", &[0xFFFF], &[]),
    key("pause", "Pause", &[0xFF13, 0xFF6B], &[]),
    key("meta_l", "MetaLeft", &[0xFFEB], &[]),
    key("meta_r", "MetaRight", &[0xFFEC], &[]),
    key("compose", "ContextMenu", &[0xFF67], &[]),
    key("audiomute", "AudioVolumeMute", &[0x1008_FF12], &[]),
    key("volumedown", "AudioVolumeDown", &[0x1008_FF11], &[]),
    key("volumeup", "AudioVolumeUp", &[0x1008_FF13], &[]),
];

/// The shift keys.
pub(super) const SHIFTS: [&str; 2] = ["shift", "shift_r"];

/// The key with this keysym on it, and whether it has it with the shift key only.
pub(super) fn of_keysym(keysym: u32) -> Option<(&'static Key, bool)> {
    let row = |key: &&Key| key.plain.contains(&keysym) || key.shifted.contains(&keysym);
    let key = KEYS.iter().find(row)?;
    Some((key, key.shifted.contains(&keysym)))
}

/// The key at this place.
pub(super) fn of_code(code: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.code == code)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_key_has_names_of_its_own() {
        let mut names = HashSet::new();
        for key in KEYS {
            assert!(names.insert(key.qcode.to_owned()), "{}", key.qcode);
            assert!(names.insert(format!("code {}", key.code)), "{}", key.code);
            for keysym in key.plain.iter().chain(key.shifted) {
                assert!(names.insert(format!("keysym {keysym:#x}")), "{keysym:#x}");
            }
            assert_eq!(of_code(key.code), Some(key));
        }
    }

    #[test]
    fn all_of_ascii_can_be_typed() {
        for keysym in 0x20..=0x7E {
            let (key, shifted) = of_keysym(keysym).expect("a key");
            let letter = char::from_u32(keysym).unwrap();
            assert_eq!(
                shifted,
                "!@#$%^&*()_+{}|:\"<>?~".contains(letter) || letter.is_uppercase()
            );
            if letter.is_ascii_alphanumeric() {
                assert_eq!(key.qcode, letter.to_ascii_lowercase().to_string());
            }
        }
        for keysym in [0, 0xFF, 0xFFFF_FFFF, 0x0100_20AC] {
            assert_eq!(of_keysym(keysym), None);
        }
        assert_eq!(of_code(""), None);
    }
}
