//! What to do for each layer of an image: pure.

use std::collections::BTreeSet;

use edge_api::virtual_machine_image::ImageVolume;

use super::validate::Layer;

/// What to do for a layer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// The volume is there and its digest was seen to be right.
    Keep(ImageVolume),
    /// A volume of that name is there, left by an earlier life or a broken upload: hash it, and replace it where it
    /// is wrong (D10).
    Verify(Layer),
    /// Bring it from the registry.
    Fetch(Layer),
}

/// Compares the layers with what is recorded in the status of any image of the appliance, and with the volumes of the
/// pool. Only a record makes a volume good.
pub fn plan(layers: &[Layer], recorded: &[ImageVolume], present: &BTreeSet<String>) -> Vec<Step> {
    layers
        .iter()
        .map(|layer| {
            if !present.contains(&layer.volume) {
                return Step::Fetch(layer.clone());
            }
            let matching = |v: &&ImageVolume| v.digest == layer.digest && v.role == layer.role;
            match recorded.iter().find(matching) {
                Some(volume) => Step::Keep(volume.clone()),
                None => Step::Verify(layer.clone()),
            }
        })
        .collect()
}

/// Whether the status alone shows that everything is there, so that not even the registry need be asked.
pub fn is_complete(ready: bool, recorded: &[ImageVolume], present: &BTreeSet<String>) -> bool {
    ready && !recorded.is_empty() && recorded.iter().all(|v| present.contains(&v.name))
}

#[cfg(test)]
mod tests {
    use edge_api::virtual_machine_image::VolumeRole;

    use super::*;

    fn layer() -> Layer {
        Layer {
            role: VolumeRole::Kernel,
            volume: "pcg-img-1".into(),
            digest: "sha256:1".into(),
            size: 3,
            virtual_size: None,
        }
    }

    fn recorded() -> ImageVolume {
        let Layer { role, volume, digest, size, virtual_size } = layer();
        ImageVolume { role, name: volume, digest, size, virtual_size }
    }

    #[test]
    fn only_a_recorded_volume_is_kept() {
        let present = BTreeSet::from(["pcg-img-1".to_owned()]);
        let nothing = BTreeSet::new();
        assert_eq!(plan(&[layer()], &[], &nothing), [Step::Fetch(layer())]);
        assert_eq!(plan(&[layer()], &[], &present), [Step::Verify(layer())]);
        assert_eq!(plan(&[layer()], &[recorded()], &present), [Step::Keep(recorded())]);
        assert_eq!(plan(&[layer()], &[recorded()], &nothing), [Step::Fetch(layer())]);
    }

    #[test]
    fn complete_means_recorded_and_present() {
        let present = BTreeSet::from(["pcg-img-1".to_owned()]);
        assert!(is_complete(true, &[recorded()], &present));
        assert!(!is_complete(true, &[], &present));
        assert!(!is_complete(true, &[recorded()], &BTreeSet::new()));
        assert!(!is_complete(false, &[recorded()], &present));
    }
}
