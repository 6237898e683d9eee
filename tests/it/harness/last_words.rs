//! Why a test failed, kept to be said again after all else: a log of many tests shows the end of each.

use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    /// What this thread panicked with, and where. A panic that was caught is among them.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Has all panics from now on be kept, besides being printed as ever.
pub fn keep() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let text = panic.payload().downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str));
            let message = text.unwrap_or("something that is no text");
            // A thread that ends has no place to keep it any more.
            let _ = PANICS.try_with(|kept| kept.borrow_mut().push(format!("{place}: {message}")));
            print(panic);
        }));
    });
}

/// What this thread panicked with so far, the last one at the end.
pub fn last_words() -> String {
    PANICS.with(|kept| kept.borrow().join("\n"))
}
