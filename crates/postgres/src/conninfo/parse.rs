use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{ChannelBinding, ConnInfo, DEFAULT_PORT, Endpoint, Password, Roots, SessionAttrs, SslMode};

/// Why a connection string was refused. Values are not repeated: they may be passwords.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseConnInfoError {
    #[error("connection keyword `{keyword}` is not supported")]
    UnknownKeyword { keyword: String },

    #[error("the text after `{after}` has no `=` (values with spaces are written in single quotes)")]
    MissingEquals { after: String },

    #[error("the quoted value of `{keyword}` does not end")]
    UnterminatedQuote { keyword: String },

    #[error("the value of `{keyword}` is not valid (expected {expected})")]
    InvalidValue { keyword: String, expected: &'static str },

    #[error("{hosts} hosts but {others} values of `{keyword}`")]
    Count { keyword: &'static str, hosts: usize, others: usize },

    #[error("`host` begins with `@`: abstract sockets are not supported")]
    AbstractSocket,

    #[error("the connection URI is not valid ({problem})")]
    Uri { problem: &'static str },
}

type Pairs = Vec<(String, String)>;

pub(super) fn parse(text: &str) -> Result<ConnInfo, ParseConnInfoError> {
    let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    let pairs = match uri {
        Some(rest) => uri_pairs(rest)?,
        None => keyword_pairs(text)?,
    };
    build(pairs)
}

/// Splits `keyword = value keyword = 'quoted value'` by libpq's rules: a backslash takes the next character as it is.
fn keyword_pairs(text: &str) -> Result<Pairs, ParseConnInfoError> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_ascii_start();
    while !rest.is_empty() {
        let missing = || ParseConnInfoError::MissingEquals {
            after: pairs.last().map_or_else(|| "the beginning".to_owned(), |(keyword, _)| keyword.clone()),
        };
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).ok_or_else(missing)?;
        let (keyword, tail) = rest.split_at(end);
        let tail = tail.trim_ascii_start().strip_prefix('=').ok_or_else(missing)?;
        if keyword.is_empty() {
            return Err(missing());
        }
        let (value, tail) = value(tail.trim_ascii_start(), keyword)?;
        pairs.push((keyword.to_owned(), value));
        rest = tail.trim_ascii_start();
    }
    Ok(pairs)
}

fn value<'a>(text: &'a str, keyword: &str) -> Result<(String, &'a str), ParseConnInfoError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(ParseConnInfoError::UnterminatedQuote { keyword: keyword.to_owned() }) } else { Ok((value, "")) }
}

/// Splits `user:password@host:port,[address]:port/dbname?keyword=value`, the scheme being gone already.
fn uri_pairs(rest: &str) -> Result<Pairs, ParseConnInfoError> {
    let mut pairs = Pairs::new();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = match authority.split_once('@') {
        Some((userinfo, hosts)) => {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            pairs.push(("user".to_owned(), percent_decode(user)?));
            pairs.push(("password".to_owned(), percent_decode(password)?));
            hosts
        }
        None => authority,
    };
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(host) => {
                let problem = "an address in brackets does not end";
                let (name, tail) = host.split_once(']').ok_or(ParseConnInfoError::Uri { problem })?;
                let problem = "text follows an address in brackets";
                match tail.strip_prefix(':') {
                    Some(port) => (name, port),
                    None if tail.is_empty() => (name, ""),
                    None => return Err(ParseConnInfoError::Uri { problem }),
                }
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(percent_decode(name)?);
        ports.push(percent_decode(port)?);
    }
    // `postgresql:///db?host=/run/postgresql` names the host in the query instead.
    if names.iter().any(|name| !name.is_empty()) {
        pairs.push(("host".to_owned(), names.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    pairs.push(("dbname".to_owned(), percent_decode(dbname)?));
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let problem = "a parameter has no `=`";
        let (keyword, value) = parameter.split_once('=').ok_or(ParseConnInfoError::Uri { problem })?;
        pairs.push(match (percent_decode(keyword)?, percent_decode(value)?) {
            // The spelling of JDBC, which libpq accepts as well.
            (keyword, value) if keyword == "ssl" && value == "true" => ("sslmode".to_owned(), "require".to_owned()),
            pair => pair,
        });
    }
    Ok(pairs)
}

fn percent_decode(text: &str) -> Result<String, ParseConnInfoError> {
    let digits = ParseConnInfoError::Uri { problem: "`%` is not followed by two hexadecimal digits" };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high << 4 | low) as u8),
            _ => return Err(digits),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| ParseConnInfoError::Uri { problem: "it is not UTF-8" })?;
    if text.contains('\0') {
        return Err(ParseConnInfoError::Uri { problem: "`%00` cannot be part of a value" });
    }
    Ok(text)
}

fn build(pairs: Pairs) -> Result<ConnInfo, ParseConnInfoError> {
    let mut info = ConnInfo::default();
    let (mut hosts, mut addresses, mut ports) = (String::new(), String::new(), String::new());
    let (mut application_name, mut fallback_name) = (None, None);
    for (keyword, value) in pairs {
        let invalid = |expected| ParseConnInfoError::InvalidValue { keyword: keyword.clone(), expected };
        if value.contains('\0') {
            return Err(invalid("text without a zero byte"));
        }
        let filled = (!value.is_empty()).then_some(value.as_str());
        let path = filled.map(PathBuf::from);
        match keyword.as_str() {
            "host" => hosts = value,
            "hostaddr" => addresses = value,
            "port" => ports = value,
            "user" => info.user = filled.map(str::to_owned),
            "password" => info.password = filled.map(|text| Password(text.to_owned())),
            "passfile" => info.passfile = path,
            "dbname" => filled.unwrap_or("postgres").clone_into(&mut info.dbname),
            "application_name" => application_name = filled.map(str::to_owned),
            "fallback_application_name" => fallback_name = filled.map(str::to_owned),
            "options" => info.options = filled.map(str::to_owned),
            "connect_timeout" => {
                info.connect_timeout = seconds(&value).filter(|timeout| !timeout.is_zero()).ok_or_else(|| {
                    invalid("seconds from 1 on: every connect has a deadline, which is 10 seconds if unset")
                })?;
            }
            "target_session_attrs" => info.session_attrs = session_attrs(&value).map_err(invalid)?,
            "sslmode" => info.tls.mode = ssl_mode(&value).map_err(invalid)?,
            "sslrootcert" => {
                info.tls.roots = match path {
                    None => Roots::Unset,
                    Some(_) if value == "system" => Roots::System,
                    Some(path) => Roots::File(path),
                }
            }
            "sslcert" => info.tls.certificate = path,
            "sslkey" => info.tls.key = path,
            "channel_binding" => {
                info.tls.channel_binding = match value.as_str() {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(invalid("disable, prefer or require")),
                }
            }
            "keepalives" => {
                info.keepalive.enabled = match value.as_str() {
                    "0" => false,
                    "1" => true,
                    _ => return Err(invalid("0 or 1")),
                }
            }
            "keepalives_idle" => info.keepalive.idle = seconds(&value).ok_or_else(|| invalid("seconds"))?,
            "keepalives_interval" => info.keepalive.interval = seconds(&value).ok_or_else(|| invalid("seconds"))?,
            "keepalives_count" => info.keepalive.count = value.parse().map_err(|_| invalid("a number"))?,
            "tcp_user_timeout" => {
                let milliseconds: u32 = value.parse().map_err(|_| invalid("milliseconds"))?;
                info.keepalive.user_timeout = Duration::from_millis(milliseconds.into());
            }
            // There is no GSSAPI here, which is all that these two ask for at most.
            "gssencmode" if matches!(value.as_str(), "disable" | "prefer") => {}
            "gssencmode" => return Err(invalid("disable or prefer: GSSAPI is not supported")),
            _ => return Err(ParseConnInfoError::UnknownKeyword { keyword }),
        }
    }
    if let Some(name) = application_name.or(fallback_name) {
        info.application_name = name;
    }
    info.endpoints = endpoints(&hosts, &addresses, &ports)?;
    if info.tls.roots == Roots::System && info.tls.mode != SslMode::VerifyFull {
        // Any owner of any public certificate would pass otherwise; libpq refuses it too.
        let expected = "a file: `system` needs sslmode=verify-full";
        return Err(ParseConnInfoError::InvalidValue { keyword: "sslrootcert".to_owned(), expected });
    }
    if info.tls.certificate.is_some() != info.tls.key.is_some() {
        let keyword = if info.tls.key.is_some() { "sslcert" } else { "sslkey" };
        let expected = "sslcert and sslkey together";
        return Err(ParseConnInfoError::InvalidValue { keyword: keyword.to_owned(), expected });
    }
    Ok(info)
}

fn seconds(value: &str) -> Option<Duration> {
    value.parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into()))
}

fn session_attrs(value: &str) -> Result<SessionAttrs, &'static str> {
    Ok(match value {
        "any" => SessionAttrs::Any,
        "read-write" => SessionAttrs::ReadWrite,
        "read-only" => SessionAttrs::ReadOnly,
        "primary" => SessionAttrs::Primary,
        "standby" => SessionAttrs::Standby,
        "prefer-standby" => SessionAttrs::PreferStandby,
        _ => return Err("any, read-write, read-only, primary, standby or prefer-standby"),
    })
}

fn ssl_mode(value: &str) -> Result<SslMode, &'static str> {
    Ok(match value {
        "disable" => SslMode::Disable,
        "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        _ => return Err("disable, prefer, require, verify-ca or verify-full"),
    })
}

fn endpoints(hosts: &str, addresses: &str, ports: &str) -> Result<Vec<Endpoint>, ParseConnInfoError> {
    let split = |list: &str| list.split(',').map(|item| item.trim_ascii().to_owned()).collect::<Vec<_>>();
    let (hosts, addresses, ports) = (split(hosts), split(addresses), split(ports));
    // An absent list is one empty item: as many endpoints as the longer of the two that name machines.
    let count = hosts.len().max(addresses.len());
    let item = |list: &[String], keyword, shared: bool, index: usize| match list {
        [only] if only.is_empty() || shared || count == 1 => Ok(only.clone()),
        list if list.len() == count => Ok(list[index].clone()),
        list => Err(ParseConnInfoError::Count { keyword, hosts: count, others: list.len() }),
    };
    (0..count)
        .map(|index| {
            let host = item(&hosts, "host", false, index)?;
            let address = item(&addresses, "hostaddr", false, index)?;
            let port = item(&ports, "port", true, index)?;
            if host.starts_with('@') {
                return Err(ParseConnInfoError::AbstractSocket);
            }
            let invalid =
                |keyword: &str, expected| ParseConnInfoError::InvalidValue { keyword: keyword.to_owned(), expected };
            let address = match address.as_str() {
                "" => None,
                text => Some(text.parse::<IpAddr>().map_err(|_| invalid("hostaddr", "a numeric address"))?),
            };
            let port = match port.as_str() {
                "" => DEFAULT_PORT,
                text => match text.parse() {
                    Ok(port) if port > 0 => port,
                    _ => return Err(invalid("port", "a number from 1 to 65535")),
                },
            };
            Ok(Endpoint::new(host, address, port))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hosts(info: &ConnInfo) -> Vec<String> {
        info.endpoints().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_libpq_strings() {
        let info: ConnInfo = r"host = db1 port=5433 user='hold fast' password='it\'s \\ secret' dbname=a\ b
            sslmode=verify-full sslrootcert=/etc/ca.pem connect_timeout=3"
            .parse()
            .unwrap();
        assert_eq!(hosts(&info), ["db1:5433"]);
        assert_eq!(info.user(), Some("hold fast"));
        assert_eq!(info.password, Some(Password(r"it's \ secret".to_owned())));
        assert_eq!(info.dbname(), "a b");
        assert_eq!(info.tls.mode, SslMode::VerifyFull);
        assert_eq!(info.tls.roots, Roots::File("/etc/ca.pem".into()));
        assert_eq!(info.connect_timeout(), Duration::from_secs(3));
    }

    #[test]
    fn an_empty_string_is_the_local_server() {
        let info: ConnInfo = "".parse().unwrap();
        assert_eq!(hosts(&info), ["/var/run/postgresql/.s.PGSQL.5432"]);
        assert_eq!(info, ConnInfo::default());
    }

    #[test]
    fn reads_uris() {
        let info: ConnInfo =
            "postgresql://hold%40fast:p%3Ass@db1:5433,[::1],db3/app?target_session_attrs=primary&ssl=true"
                .parse()
                .unwrap();
        assert_eq!(hosts(&info), ["db1:5433", "[::1]:5432", "db3:5432"]);
        assert_eq!(info.user(), Some("hold@fast"));
        assert_eq!(info.password, Some(Password("p:ss".to_owned())));
        assert_eq!(info.dbname(), "app");
        assert_eq!(info.session_attrs, SessionAttrs::Primary);
        assert_eq!(info.tls.mode, SslMode::Require);

        for text in ["postgres:///app?host=/run/pg", "postgres://%2Frun%2Fpg/app"] {
            let info: ConnInfo = text.parse().unwrap();
            assert_eq!(hosts(&info), ["/run/pg/.s.PGSQL.5432"], "{text}");
        }
    }

    #[test]
    fn several_hosts_share_one_port_or_have_their_own() {
        let info: ConnInfo = "host=a,b port=6000".parse().unwrap();
        assert_eq!(hosts(&info), ["a:6000", "b:6000"]);
        let info: ConnInfo = "host=a,b hostaddr=10.0.0.1,10.0.0.2 port=6000,6001".parse().unwrap();
        assert_eq!(hosts(&info), ["a:6000", "b:6001"]);
        let error = "host=a,b,c port=6000,6001".parse::<ConnInfo>().unwrap_err();
        assert_eq!(error, ParseConnInfoError::Count { keyword: "port", hosts: 3, others: 2 });
    }

    #[test]
    fn refuses_what_it_would_not_act_upon() {
        let refused = |text: &str| text.parse::<ConnInfo>().unwrap_err().to_string();
        assert_eq!(refused("host=a sslsni=1"), "connection keyword `sslsni` is not supported");
        assert_eq!(refused("service=x"), "connection keyword `service` is not supported");
        assert!(refused("connect_timeout=0").contains("every connect has a deadline"));
        assert!(refused("sslmode=allow").contains("expected disable, prefer"));
        assert!(refused("host=@abstract").contains("abstract sockets"));
        assert!(refused("port=0").contains("1 to 65535"));
        assert!(refused("sslcert=/x").contains("together"));
        assert!(refused("sslrootcert=system").contains("verify-full"));
        assert!(refused("gssencmode=require").contains("GSSAPI"));
        assert!(refused("host='a").contains("does not end"));
        assert!(refused("postgresql://a?x").contains("no `=`"));
        assert!(refused("postgresql://%zz").contains("hexadecimal"));
        assert!(refused("postgresql://[::1").contains("brackets"));
    }

    #[test]
    fn messages_and_debug_output_hide_passwords() {
        let error = "host=a password=correct horse".parse::<ConnInfo>().unwrap_err().to_string();
        assert!(!error.contains("horse") && error.contains("after `password`"), "{error}");
        let info: ConnInfo = "host=a password=horse".parse().unwrap();
        assert!(!format!("{info:?} {info}").contains("horse"));
    }

    proptest! {
        #[test]
        fn quoted_values_survive(user in "[^\0]{1,20}", password in "[^\0]{1,20}") {
            let quote = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
            let info: ConnInfo = format!("user={} password = {} ", quote(&user), quote(&password)).parse().unwrap();
            prop_assert_eq!(info.user(), Some(user.as_str()));
            prop_assert_eq!(info.password, Some(Password(password)));
        }

        #[test]
        fn percent_encoded_values_survive(user in "[^\0]{1,20}", dbname in "[^\0]{1,20}") {
            let encode = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<Vec<_>>().concat();
            let info: ConnInfo = format!("postgresql://{}@h/{}", encode(&user), encode(&dbname)).parse().unwrap();
            prop_assert_eq!(info.user(), Some(user.as_str()));
            prop_assert_eq!(info.dbname(), dbname.as_str());
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,80}", tail in "[a-z:@/?&=%,\\[\\]'\\\\ 0-9]{0,60}") {
            for text in [text, tail.clone(), format!("postgresql://{tail}"), format!("host={tail}")] {
                if let Ok(info) = text.parse::<ConnInfo>() {
                    prop_assert!(!info.endpoints().is_empty());
                }
            }
        }
    }
}
