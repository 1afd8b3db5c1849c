//! Names of a certificate (RFC 5280 section 4.2.1.6), as text.

use std::net::IpAddr;

use rustls_pki_types::{DnsName, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::limits::{SITE_NAMES_BYTES_MAX, SITE_NAMES_MAX};

/// Addresses, and DNS names with or without a wildcard in front, of the alternative names; what is neither is left out.
pub(super) fn of_certificate(certificate: &X509Certificate<'_>) -> Option<Vec<String>> {
    let Some(names) = certificate.subject_alternative_name().ok()? else {
        return Some(Vec::new());
    };
    let mut kept = Vec::new();
    let mut bytes = 0;
    for name in &names.value.general_names {
        let text = match name {
            // A DNS name that reads as an address matches none, so as an address it would say too much.
            GeneralName::DNSName(name) if is_dns(name) => (*name).to_owned(),
            GeneralName::IPAddress(octets) => match address(octets) {
                Some(address) => address.to_string(),
                None => continue,
            },
            _ => continue,
        };
        bytes += text.len();
        if kept.len() == SITE_NAMES_MAX || bytes > SITE_NAMES_BYTES_MAX {
            break;
        }
        kept.push(text);
    }
    Some(kept)
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

fn is_dns(name: &str) -> bool {
    let below = name.strip_prefix("*.").unwrap_or(name);
    below.parse::<IpAddr>().is_err() && DnsName::try_from(below).is_ok()
}

/// Whether text is a name that a certificate may hold.
pub(super) fn is_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || is_dns(name)
}

/// The host that a browser asked for, as a certificate names it.
pub(super) fn of_host(host: &str) -> Option<ServerName<'_>> {
    ServerName::try_from(host.strip_suffix('.').unwrap_or(host)).ok()
}
