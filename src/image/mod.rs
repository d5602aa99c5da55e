//! Images: layers composed, compressed, described and written as files.
//!
//! [`compose`] makes a layer of each overlay, [`compress`] packs layers, [`oci`] writes OCI images, [`sbom`] the bills
//! of materials that lie beside them. Equal inputs give equal bytes on every machine.

pub mod compose;
pub mod compress;
pub mod oci;
pub mod sbom;
