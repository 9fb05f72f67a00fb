//! libvirt storage pools and volumes. Formats are always said, never guessed from content, which a guest controls.
//!
//! <https://libvirt.org/formatstorage.html>

use serde::Deserialize;
use uuid::Uuid;

use super::xml::{self, element, text};
use super::{Error, PoolFacts, VolumeFacts};

/// XML of a `dir` pool.
pub fn pool_xml(name: &str, uuid: Uuid, path: &str) -> String {
    element("pool")
        .attr("type", "dir")
        .child(text("name", name))
        .child(text("uuid", uuid.to_string()))
        .child(element("target").child(text("path", path)))
        .document()
}

/// A volume that is wanted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NewVolume {
    /// Raw bytes that an upload will fill.
    Raw {
        /// Bytes.
        size: u64,
        /// Whether only root and QEMU may read it: it holds secrets.
        private: bool,
    },
    /// An empty qcow2 disk.
    Empty {
        /// Bytes that the guest sees.
        size: u64,
    },
    /// A qcow2 disk that holds the differences to another one.
    Overlay {
        /// Bytes that the guest sees.
        size: u64,
        /// Path of the disk below, in qcow2 format.
        backing: String,
    },
}

impl NewVolume {
    /// XML to make it with.
    pub fn xml(&self, name: &str) -> String {
        let (size, format) = match self {
            Self::Raw { size, private: _ } => (size, "raw"),
            Self::Empty { size } | Self::Overlay { size, backing: _ } => (size, "qcow2"),
        };
        // A machine's own disk has all the secrets of its guest.
        let open = matches!(self, Self::Raw { private: false, .. });
        let permissions = element("permissions").child(text("mode", if open { "0644" } else { "0600" }));
        let root = element("volume")
            .child(text("name", name))
            .child(text("capacity", size.to_string()).attr("unit", "bytes"))
            .child(text("allocation", "0"))
            .child(element("target").child(element("format").attr("type", format)).child(permissions));
        match self {
            Self::Overlay { size: _, backing } => root.child(
                element("backingStore").child(text("path", backing)).child(element("format").attr("type", "qcow2")),
            ),
            Self::Raw { .. } | Self::Empty { .. } => root,
        }
        .document()
    }
}

#[derive(Deserialize)]
struct PoolDocument {
    #[serde(rename = "@type")]
    kind: String,
    name: String,
    uuid: Uuid,
    capacity: Option<Size>,
    available: Option<Size>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "$text")]
    bytes: u64,
}

#[derive(Deserialize)]
struct Target {
    path: Option<String>,
}

#[derive(Deserialize)]
struct VolumeDocument {
    name: String,
    capacity: Size,
    target: Target,
    #[serde(rename = "backingStore")]
    backing: Option<Target>,
}

/// Reads a pool.
pub fn read_pool(document: &str, active: bool, autostart: bool) -> Result<PoolFacts, Error> {
    let PoolDocument { kind, name, uuid, capacity, available, target } = xml::read("storage pool", document)?;
    Ok(PoolFacts {
        name,
        uuid,
        active,
        autostart,
        kind,
        path: target.and_then(|t| t.path).unwrap_or_default(),
        capacity: capacity.map_or(0, |c| c.bytes),
        available: available.map_or(0, |a| a.bytes),
    })
}

/// Reads a volume.
pub fn read_volume(document: &str) -> Result<VolumeFacts, Error> {
    let VolumeDocument { name, capacity, target, backing } = xml::read("storage volume", document)?;
    Ok(VolumeFacts {
        name,
        path: target.path.unwrap_or_default(),
        capacity: capacity.bytes,
        backing: backing.and_then(|b| b.path),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_names_its_formats() {
        let xml = NewVolume::Overlay { size: 7, backing: "/pool/pcg-img-00".into() }.xml("v");
        assert_eq!(xml.matches("<format type=\"qcow2\"/>").count(), 2, "{xml}");
        assert_eq!(
            read_volume(&xml.replace("</target>", "<path>/p/v</path></target>")).unwrap().backing.as_deref(),
            Some("/pool/pcg-img-00")
        );
    }

    #[test]
    fn libvirts_own_words_are_understood() {
        let volume = "<volume type='file'><name>v</name><key>/p/v</key><capacity unit='bytes'>42</capacity>\
            <allocation unit='bytes'>4096</allocation><physical unit='bytes'>42</physical>\
            <target><path>/p/v</path><format type='raw'/></target></volume>";
        let facts = read_volume(volume).unwrap();
        assert_eq!((facts.capacity, facts.path.as_str(), facts.backing), (42, "/p/v", None));
        let pool = "<pool type='dir'><name>p</name><uuid>8e10e752-4faa-48fe-94a5-4a365294fe76</uuid>\
            <capacity unit='bytes'>100</capacity><allocation unit='bytes'>1</allocation>\
            <available unit='bytes'>99</available><source></source>\
            <target><path>/p</path></target></pool>";
        let facts = read_pool(pool, true, true).unwrap();
        assert_eq!((facts.capacity, facts.available), (100, 99));
        assert_eq!((facts.path.as_str(), facts.kind.as_str()), ("/p", "dir"));
        assert_eq!(read_pool(&pool_xml("p", facts.uuid, "/p"), false, false).unwrap().path, "/p");
    }
}
