//! What a pool does at least: a pop and a push. No limit, no waiting, no check.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Pool;

pub struct Bare<T>(Arc<Mutex<Vec<Box<T>>>>);

impl<T> Bare<T> {
    pub fn of(object: T) -> Self {
        Self(Arc::new(Mutex::new(vec![Box::new(object)])))
    }
}

impl<T> Clone for Bare<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + 'static> Pool<T> for Bare<T> {
    type Conn<'a> = Box<T>;

    #[inline]
    async fn get(&self) -> Self::Conn<'_> {
        self.0.lock().pop().expect("one that was pushed")
    }

    #[inline]
    fn object<'c>(&self, conn: &'c mut Self::Conn<'_>) -> &'c mut T {
        conn
    }

    #[inline]
    fn put(&self, conn: Self::Conn<'_>) {
        self.0.lock().push(conn);
    }

    fn discard(&self, conn: Self::Conn<'_>) {
        drop(conn);
    }
}
