//! Pages for tests on machines without huge pages: anonymous files at made-up physical addresses.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{DirectoryError, Page, PageSource};
use crate::addr::PhysAddr;
use crate::platform::frame_allocator::HUGE_PAGE_LENGTH;
use crate::platform::mapping::{Mapping, Sharing};

#[derive(Default)]
pub(in crate::platform) struct FakePages {
    /// Addresses to hand out, last first.
    pub(in crate::platform) addresses: Vec<u64>,
    pub(in crate::platform) files: Rc<RefCell<BTreeMap<String, OwnedFd>>>,
    /// Renewing loses the page.
    pub(in crate::platform) lossy: bool,
    /// Pages that were written back, each with how many bytes of it.
    pub(in crate::platform) written_back: RefCell<Vec<(u64, usize)>>,
    serial: u32,
}

impl FakePages {
    pub(in crate::platform) fn at(addresses: &[u64]) -> Self {
        Self { addresses: addresses.iter().rev().copied().collect(), ..Self::default() }
    }

    /// A device writes 8 bytes at this offset of a page.
    pub(in crate::platform) fn dirty(&self, page: &Page, offset: u64) {
        let files = self.files.borrow();
        rustix::io::pwrite(&files[page.name()], &[0xdb; 8], offset).unwrap();
    }

    pub(in crate::platform) fn page(&mut self, phys: u64) -> Page {
        self.serial += 1;
        let name = format!("{}", self.serial);
        let file = memfd_create("page", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, HUGE_PAGE_LENGTH as u64).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, HUGE_PAGE_LENGTH, Sharing::Shared).unwrap();
        self.files.borrow_mut().insert(name.clone(), file);
        Page::new(PhysAddr(phys), mapping, name)
    }
}

impl PageSource for FakePages {
    fn take(&mut self) -> Result<Page, DirectoryError> {
        let phys = self.addresses.pop().ok_or(DirectoryError::NoPages { taken: 0 })?;
        Ok(self.page(phys))
    }

    fn renew(&mut self, page: Page) -> Option<Page> {
        let old = self.files.borrow_mut().remove(page.name()).unwrap();
        ftruncate(&old, 0).unwrap();
        (!self.lossy).then(|| self.page(page.phys.0))
    }

    fn discard(&mut self, page: Page) {
        self.files.borrow_mut().remove(page.name());
    }

    fn write_back(&self, page: &Page, length: usize) {
        self.written_back.borrow_mut().push((page.phys.0, length));
    }

    fn share(&self, page: &Page) -> Option<OwnedFd> {
        self.files.borrow().get(page.name())?.try_clone().ok()
    }
}
