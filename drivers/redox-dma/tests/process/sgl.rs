//! Memory in pieces.

use iommud_tests::model::Model;
use redox_dma::sgl::{Chunk, Sgl};

use crate::platform::{bytes, number};
use crate::{address, alone, alone_with, drive};

const PAGE: usize = 4096;
/// Two pieces of 4 MiB, one of 1 MiB, one of four pages, one that is a byte short of a page.
const LENGTH: usize = (9 << 20) + 5 * PAGE - 1;

/// The chunks, as values that a test may write through.
fn pieces(list: &Sgl) -> Vec<Chunk> {
    let copy = |&Chunk { offset, phys, virt, length }: &Chunk| Chunk { offset, phys, virt, length };
    list.chunks().iter().map(copy).collect()
}

fn shape(list: &Sgl) -> Vec<(usize, usize)> {
    list.chunks().iter().map(|chunk| (chunk.offset, chunk.length)).collect()
}

const SHAPE: [(usize, usize); 5] = [
    (0, 4 << 20),
    (4 << 20, 4 << 20),
    (8 << 20, 1 << 20),
    (9 << 20, 4 * PAGE),
    ((9 << 20) + 4 * PAGE, PAGE - 1),
];

#[test]
fn pieces_are_what_the_device_finds() {
    alone("sgl::pieces_are_what_the_device_finds", || {
        let model = Model::new();
        drive(&model);
        let list = Sgl::new(LENGTH).unwrap();
        assert_eq!((list.len(), shape(&list)), (LENGTH, SHAPE.to_vec()));
        for (index, mut piece) in pieces(&list).into_iter().enumerate() {
            assert_eq!(piece.virt, list.as_ptr().wrapping_add(piece.offset));
            let (first, last) = (piece.phys as u64, (piece.phys + piece.length - 1) as u64);
            assert!(bytes(&mut piece).iter().all(|byte| *byte == 0));
            bytes(&mut piece).fill(index as u8 + 1);
            let length = piece.length;
            assert_eq!(
                model.device_read(address(), first, length).unwrap(),
                vec![index as u8 + 1; length]
            );
            model.device_write(address(), last, &[0x77]).unwrap();
            assert_eq!(bytes(&mut piece)[length - 1], 0x77);
        }
        let end = list.chunks()[4].phys + PAGE;
        assert!(model.device_write(address(), end as u64, &[1]).is_err());
        drop(list);
        assert_eq!(model.reach(address()), []);
        assert_eq!(number(Sgl::new(0)), 22);
        assert_eq!(number(Sgl::new(usize::MAX)), 12);
        let short = Sgl::new(5).unwrap();
        assert_eq!(shape(&short), [(0, 5)]);
    });
}

#[test]
fn plain_pieces_have_the_same_shape() {
    alone_with("sgl::plain_pieces_have_the_same_shape", &[("IOMMU_SOCKET", "/nowhere")], || {
        let list = Sgl::new(LENGTH).unwrap();
        assert_eq!(shape(&list), SHAPE);
        for mut piece in pieces(&list) {
            assert!(bytes(&mut piece).iter().all(|byte| *byte == 0));
            bytes(&mut piece).fill(1);
            assert_eq!(piece.phys, piece.virt.addr());
        }
        assert_eq!(number(Sgl::new(0)), 22);
    });
}
