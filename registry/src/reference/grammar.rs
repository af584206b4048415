//! The parts of a reference, each as the distribution project's grammar has it.

/// Longest `host/repository`, in bytes.
pub(super) const MAXIMUM_NAME_LENGTH: usize = 255;
/// Longest tag, in bytes.
pub(super) const MAXIMUM_TAG_LENGTH: usize = 128;

/// Whether the text before the first slash is a host, and not part of a repository of docker.io.
pub(super) fn names_a_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

pub(super) fn is_host(host: &str) -> bool {
    let (name, port) = match host.rfind(']') {
        Some(end) => match &host[end + 1..] {
            "" => (host, None),
            rest => match rest.strip_prefix(':') {
                Some(port) => (&host[..=end], Some(port)),
                None => return false,
            },
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    if let Some(port) = port
        && (port.is_empty()
            || !port.bytes().all(|byte| byte.is_ascii_digit())
            || port.parse::<u16>().is_err())
    {
        return false;
    }
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|component| {
            !component.is_empty()
                && !component.starts_with('-')
                && !component.ends_with('-')
                && component.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
pub(super) fn is_path_component(component: &str) -> bool {
    let mut separator = String::new();
    let mut seen_letter = false;
    for character in component.chars() {
        match character {
            'a'..='z' | '0'..='9' => {
                let separator_allowed = match separator.as_str() {
                    "" | "." | "_" | "__" => true,
                    other => other.bytes().all(|byte| byte == b'-'),
                };
                if !separator_allowed {
                    return false;
                }
                separator.clear();
                seen_letter = true;
            }
            '.' | '_' | '-' if seen_letter => separator.push(character),
            _ => return false,
        }
    }
    seen_letter && separator.is_empty()
}

/// `[\w][\w.-]{0,127}`
pub(super) fn is_tag(tag: &str) -> bool {
    tag.len() <= MAXIMUM_TAG_LENGTH
        && !tag.is_empty()
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

pub(super) fn is_layout_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAXIMUM_NAME_LENGTH
        && name.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'@' | b'+' | b'/')
        })
}
