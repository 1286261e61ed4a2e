//! Fences of the compiler and of the processor, which order the stores that hardware sees. In tests each thread
//! records its fences and stores. A test can then check their order, which no current processor would reveal.

#[cfg(not(test))]
pub(super) use core::arch::x86_64::{_mm_mfence, _mm_sfence};
#[cfg(not(test))]
pub(super) use core::sync::atomic::fence;

#[cfg(test)]
pub(super) use recorded::{_mm_mfence, _mm_sfence, Order, fence, note, record};

/// The same fences, which also record that they ran.
#[cfg(test)]
mod recorded {
    use core::cell::RefCell;
    use core::sync::atomic::Ordering;

    /// One recorded action of a thread.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::platform) enum Order {
        Fence(Ordering),
        /// MFENCE.
        Full,
        /// SFENCE.
        Stores,
        /// A volatile store at this offset of a mapping.
        Store(usize),
        /// The cache line at this address was written back.
        Line(usize),
    }

    thread_local! {
        static NOTED: RefCell<Option<Vec<Order>>> = const { RefCell::new(None) };
    }

    /// Runs `action` and returns the actions that this thread recorded meanwhile, in order.
    pub(in crate::platform) fn record(action: impl FnOnce()) -> Vec<Order> {
        NOTED.set(Some(Vec::new()));
        action();
        NOTED.take().unwrap_or_default()
    }

    pub(in crate::platform) fn note(order: Order) {
        NOTED.with_borrow_mut(|noted| {
            if let Some(noted) = noted {
                noted.push(order);
            }
        });
    }

    pub(in crate::platform) fn fence(order: Ordering) {
        core::sync::atomic::fence(order);
        note(Order::Fence(order));
    }

    #[expect(unsafe_code, reason = "the same signature as the instruction's")]
    pub(in crate::platform) unsafe fn _mm_mfence() {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { core::arch::x86_64::_mm_mfence() }
        note(Order::Full);
    }

    #[expect(unsafe_code, reason = "the same signature as the instruction's")]
    pub(in crate::platform) unsafe fn _mm_sfence() {
        // SAFETY: SSE is part of x86-64.
        unsafe { core::arch::x86_64::_mm_sfence() }
        note(Order::Stores);
    }
}
