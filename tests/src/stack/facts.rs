//! The memory of a store of facts, which outlives the servers of a stack.

use std::cell::RefCell;
use std::rc::Rc;

use iommud::facts::{Cell, CellMemory, Left, Unreadable, read};

use crate::machine::Machine;

/// Cells of a store. Two records take an eighth of them.
const CELLS: usize = 1024;

/// Cells of a store; clones share them.
#[derive(Clone)]
pub struct SharedFacts {
    cells: Rc<RefCell<Vec<Cell>>>,
    /// Stores count as actions of this machine's CPU.
    counted: Rc<RefCell<Option<Machine>>>,
}

impl Default for SharedFacts {
    fn default() -> Self {
        Self { cells: Rc::new(RefCell::new(vec![[0; 4]; CELLS])), counted: Rc::default() }
    }
}

impl SharedFacts {
    /// Counts each store of a word as an action of a machine's CPU from now on: the server may die before it.
    pub fn count_stores(&self, machine: &Machine) {
        *self.counted.borrow_mut() = Some(machine.clone());
    }

    /// What the next server would find.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn left(&self) -> Result<Option<Left>, Unreadable> {
        read(self)
    }
}

impl CellMemory for SharedFacts {
    fn count(&self) -> u32 {
        u32::try_from(self.cells.borrow().len()).unwrap()
    }

    fn read(&self, cell: u32) -> Cell {
        self.cells.borrow()[cell as usize]
    }

    fn write(&mut self, cell: u32, words: &Cell) {
        (0..4).for_each(|word| self.write_word(cell, word, words[word]));
    }

    fn write_word(&mut self, cell: u32, word: usize, value: u64) {
        if let Some(machine) = self.counted.borrow().as_ref() {
            machine.count_store();
        }
        self.cells.borrow_mut()[cell as usize][word] = value;
    }
}
