//! Which of the document's members this machine is: by its addresses, then its host name, then its instance id.

use crate::{error::UserError, model::ClusterSpec};
use std::net::IpAddr;

/// What a machine knows of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostIdentity {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host name.
    pub host_name: String,
    /// The id that its cloud gave it.
    pub instance_id: Option<String>,
}

/// The index of the member that a machine with these traits is; `None` if it is not one of them, which may change while
/// its network comes up.
///
/// # Errors
/// A wrong request when it is several of them.
pub fn identify(spec: &ClusterSpec, host: &HostIdentity) -> Result<Option<usize>, UserError> {
    let short = host.host_name.split('.').next().unwrap_or_default();
    let all = |is: &dyn Fn(&crate::model::Member) -> bool| -> Vec<usize> {
        (0..spec.members.len()).filter(|index| is(&spec.members[*index])).collect()
    };
    let by_address = all(&|member| host.addresses.contains(&member.address));
    let by_name = all(&|member| member.name == short || member.name == host.host_name);
    let by_id = all(&|member| member.instance_id.is_some() && member.instance_id == host.instance_id);
    match (by_address.as_slice(), by_name.as_slice(), by_id.as_slice()) {
        ([one], ..) | ([], [one], _) | ([], [], [one]) => Ok(Some(*one)),
        ([], [], []) => Ok(None),
        (several, ..) => {
            let names: Vec<_> = several.iter().map(|index| spec.members[*index].name.as_str()).collect();
            Err(UserError::usage(format!("this machine has the addresses of several members: {}", names.join(", "))))
        }
    }
}

/// What to say of a machine that is not a member.
pub fn unknown_host(spec: &ClusterSpec, host: &HostIdentity) -> UserError {
    let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
    let members: Vec<_> = spec.members.iter().map(|member| format!("{} at {}", member.name, member.address)).collect();
    UserError::runtime(format!(
        "this machine is not one of the members {}: it is called `{}` and has the addresses {}",
        members.join(", "),
        host.host_name,
        if addresses.is_empty() { "(none)".to_owned() } else { addresses.join(", ") }
    ))
    .hint("give the machine one of these addresses, or correct the document")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::samples;

    fn who(addresses: &[&str], host_name: &str, instance_id: Option<&str>) -> Result<Option<usize>, UserError> {
        let mut spec = samples::three();
        spec.members[2].instance_id = Some("i-3".into());
        let host = HostIdentity {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            host_name: host_name.into(),
            instance_id: instance_id.map(Into::into),
        };
        identify(&spec, &host)
    }

    #[test]
    fn addresses_come_before_names_and_names_before_ids() {
        assert_eq!(who(&["192.0.2.1", "10.0.0.12"], "pg-1", Some("i-3")).unwrap(), Some(1));
        assert_eq!(who(&["192.0.2.1"], "pg-1.example.org", Some("i-3")).unwrap(), Some(0));
        assert_eq!(who(&[], "host", Some("i-3")).unwrap(), Some(2));
        assert_eq!(who(&["10.0.0.10"], "host", None).unwrap(), None);
    }

    #[test]
    fn a_machine_that_is_two_members_is_refused() {
        assert_eq!(
            who(&["10.0.0.11", "10.0.0.12"], "", None).unwrap_err().message,
            "this machine has the addresses of several members: pg-1, pg-2"
        );
    }
}
