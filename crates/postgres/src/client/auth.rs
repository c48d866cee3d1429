//! Proving who we are, and with SCRAM letting the server prove who it is.

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::ConnectError;
use super::body::{Reader, invalid};
use super::connect::refusal;
use super::wire::{Frame, Wire};
use crate::conninfo::{ChannelBinding, ConnInfo, Endpoint, Password};

pub(super) struct Login<'a> {
    pub(super) info: &'a ConnInfo,
    pub(super) endpoint: &'a Endpoint,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
    pub(super) server: &'a str,
    /// The hash of the server's certificate, if there is one.
    pub(super) binding: Option<Vec<u8>>,
}

impl Login<'_> {
    fn server(&self) -> String {
        self.server.to_owned()
    }

    fn password(&self) -> Result<Password, ConnectError> {
        match self.info.password_for(self.endpoint, self.database, self.user) {
            Ok(Some(password)) => Ok(password),
            Ok(None) => Err(ConnectError::PasswordNeeded { server: self.server(), user: self.user.to_owned() }),
            Err(source) => Err(ConnectError::PasswordFile { server: self.server(), source }),
        }
    }

    fn protocol(&self, source: std::io::Error) -> ConnectError {
        ConnectError::Protocol { server: self.server(), source }
    }

    /// With `channel_binding=require` nothing but SCRAM bound to the certificate will do.
    fn unbound_allowed(&self) -> Result<(), ConnectError> {
        if self.info.tls.channel_binding == ChannelBinding::Require {
            return Err(ConnectError::ChannelBinding { server: self.server() });
        }
        Ok(())
    }
}

async fn exchange(wire: &mut Wire, login: &Login<'_>) -> Result<Frame, ConnectError> {
    loop {
        let frame = wire.take().map_err(|source| login.protocol(source))?;
        match frame {
            Some(Frame::Error(body)) => return Err(refusal(&body, login.server)),
            // A server of the future may decline protocol options; none are asked for.
            Some(Frame::Notice(_)) => {}
            Some(frame) => return Ok(frame),
            None => {
                let read = wire.fill().await;
                read.map_err(|source| ConnectError::Io { server: login.server(), source })?;
            }
        }
    }
}

/// Sends what is in the output, then logs in by whatever method the server asks for.
pub(super) async fn authenticate(wire: &mut Wire, login: &Login<'_>) -> Result<(), ConnectError> {
    let mut proven = false;
    loop {
        match exchange(wire, login).await? {
            Frame::Message(Message::AuthenticationOk) => {
                return if proven { Ok(()) } else { login.unbound_allowed() };
            }
            Frame::Message(Message::AuthenticationCleartextPassword) => {
                login.unbound_allowed()?;
                if !wire.is_confidential() {
                    let user = login.user.to_owned();
                    return Err(ConnectError::PasswordInClear { server: login.server(), user });
                }
                send_password(wire, login, login.password()?.as_bytes())?;
            }
            Frame::Message(Message::AuthenticationMd5Password(body)) => {
                login.unbound_allowed()?;
                let hash = md5_hash(login.user.as_bytes(), login.password()?.as_bytes(), body.salt());
                send_password(wire, login, hash.as_bytes())?;
            }
            Frame::Sasl(body) => {
                scram(wire, login, &body).await?;
                proven = true;
            }
            Frame::Message(other) => {
                let method = match other {
                    Message::AuthenticationGss => "gss",
                    Message::AuthenticationSspi => "sspi",
                    Message::AuthenticationKerberosV5 => "kerberos",
                    Message::AuthenticationScmCredential => "scm",
                    _ => return Err(login.protocol(invalid("an unexpected message during the login"))),
                };
                return Err(ConnectError::Method { server: login.server(), method: method.to_owned() });
            }
            _ => return Err(login.protocol(invalid("an unexpected message during the login"))),
        }
    }
}

fn send_password(wire: &mut Wire, login: &Login<'_>, password: &[u8]) -> Result<(), ConnectError> {
    frontend::password_message(password, &mut wire.output).map_err(|source| login.protocol(source))
}

async fn scram(wire: &mut Wire, login: &Login<'_>, offer: &[u8]) -> Result<(), ConnectError> {
    let mut mechanisms = Vec::new();
    let mut reader = Reader(offer);
    while let Some(mechanism) = Some(reader.text().map_err(|e| login.protocol(e))?).filter(|m| !m.is_empty()) {
        mechanisms.push(mechanism);
    }
    let offered = |name: &str| mechanisms.iter().any(|mechanism| mechanism == name);
    let wanted = login.info.tls.channel_binding;
    let binding = login.binding.as_ref().filter(|_| wanted != ChannelBinding::Disable);
    let (mechanism, binding) = match binding {
        Some(hash) if offered(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.clone()))
        }
        _ if !offered(SCRAM_SHA_256) => {
            return Err(ConnectError::Method { server: login.server(), method: mechanisms.join(", ") });
        }
        // We could have bound and the server says it cannot: it will notice if someone took its offer away.
        Some(_) => (SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    if mechanism == SCRAM_SHA_256 {
        login.unbound_allowed()?;
    }
    let mut scram = ScramSha256::new(login.password()?.as_bytes(), binding);
    let sent = frontend::sasl_initial_response(mechanism, scram.message(), &mut wire.output);
    sent.map_err(|source| login.protocol(source))?;
    let Frame::Message(Message::AuthenticationSaslContinue(body)) = exchange(wire, login).await? else {
        return Err(login.protocol(invalid("an unexpected message in the middle of SCRAM")));
    };
    scram.update(body.data()).map_err(|source| login.protocol(source))?;
    frontend::sasl_response(scram.message(), &mut wire.output).map_err(|source| login.protocol(source))?;
    let Frame::Message(Message::AuthenticationSaslFinal(body)) = exchange(wire, login).await? else {
        return Err(login.protocol(invalid("an unexpected message at the end of SCRAM")));
    };
    scram.finish(body.data()).map_err(|source| ConnectError::ServerProof { server: login.server(), source })
}
