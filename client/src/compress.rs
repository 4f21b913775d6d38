//! Bodies that producers compressed: zlib, LZ4 frames, Zstandard.

use std::io::Read;

use flate2::Compression as Level;
use flate2::bufread::{ZlibDecoder, ZlibEncoder};
use gantry_proto::record::Compression;

use crate::error::{Error, ErrorKind, Result};

/// Largest body that is unpacked, in bytes: four times what brokers accept by default.
const BODY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Packs as Java producers do: zlib, level 5.
pub(crate) fn zlib(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() / 2);
    // Reading from memory into memory cannot fail; if it did the body would be sent as it is.
    match ZlibEncoder::new(body, Level::new(5)).read_to_end(&mut out) {
        Ok(_) => out,
        Err(_) => Vec::new(),
    }
}

/// Unpacks a body.
pub(crate) fn decompress(how: Compression, body: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len().saturating_mul(3).min(1 << 20));
    let read = match how {
        Compression::Zlib => ZlibDecoder::new(body).take(BODY_BYTES_MAX + 1).read_to_end(&mut out),
        Compression::Lz4 => {
            lz4_flex::frame::FrameDecoder::new(body).take(BODY_BYTES_MAX + 1).read_to_end(&mut out)
        }
        Compression::Zstd => ruzstd::decoding::StreamingDecoder::new(body)
            .map_err(std::io::Error::other)
            .and_then(|decoder| decoder.take(BODY_BYTES_MAX + 1).read_to_end(&mut out)),
        Compression::Other(number) => {
            return Err(Error::new(
                ErrorKind::Protocol,
                format!("a body is compressed in the unknown way {number}"),
            ));
        }
    };
    let read = read.map_err(|error| {
        Error::new(ErrorKind::Protocol, format!("a {how:?} body cannot be unpacked")).because(error)
    })?;
    if read as u64 > BODY_BYTES_MAX {
        let what = format!("a {how:?} body unpacks to more than {BODY_BYTES_MAX} bytes");
        return Err(Error::new(ErrorKind::Protocol, what));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn every_way_is_unpacked() {
        let body = b"liftoff ".repeat(1000);
        assert_eq!(decompress(Compression::Zlib, &zlib(&body)).unwrap(), body);
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&body).unwrap();
        assert_eq!(decompress(Compression::Lz4, &lz4.finish().unwrap()).unwrap(), body);
        let zstd =
            ruzstd::encoding::compress_to_vec(body.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(decompress(Compression::Zstd, &zstd).unwrap(), body);
    }

    #[test]
    fn what_is_not_compressed_is_refused() {
        for how in [Compression::Zlib, Compression::Lz4, Compression::Zstd, Compression::Other(5)] {
            assert_eq!(decompress(how, b"plain").unwrap_err().kind(), ErrorKind::Protocol, "{how:?}");
        }
    }
}
