//! Waiting for two futures within one task: for the first of them ([`select`], which drops the other) or for both
//! ([`both`]).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

/// Which of two futures was ready first.
pub enum Either<L, R> {
    Left(L),
    Right(R),
}

// These are structs and not `async fn`, which hold what they are given twice, once as argument and once pinned, so that
// each level of nesting doubles the task: tens of KB where 2 KB do.
pin_project! {
    /// See [`select`].
    pub struct Select<L, R> {
        #[pin]
        left: L,
        #[pin]
        right: R,
    }
}

/// Waits for the first of two and drops the other. Only for futures that may be dropped: never a link's read or write.
pub fn select<L: Future, R: Future>(left: L, right: R) -> Select<L, R> {
    Select { left, right }
}

impl<L: Future, R: Future> Future for Select<L, R> {
    type Output = Either<L::Output, R::Output>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(left) = this.left.poll(cx) {
            return Poll::Ready(Either::Left(left));
        }
        this.right.poll(cx).map(Either::Right)
    }
}

pin_project! {
    /// See [`both`].
    pub struct Both<L, R> {
        #[pin]
        left: L,
        #[pin]
        right: R,
        left_open: bool,
        right_open: bool,
    }
}

/// Runs two futures in this task until both have ended well or one has failed.
pub fn both<E, L, R>(left: L, right: R) -> Both<L, R>
where
    L: Future<Output = Result<(), E>>,
    R: Future<Output = Result<(), E>>,
{
    Both {
        left,
        right,
        left_open: true,
        right_open: true,
    }
}

impl<E, L, R> Future for Both<L, R>
where
    L: Future<Output = Result<(), E>>,
    R: Future<Output = Result<(), E>>,
{
    type Output = Result<(), E>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if *this.left_open
            && let Poll::Ready(result) = this.left.poll(cx)
        {
            result?;
            *this.left_open = false;
        }
        if *this.right_open
            && let Poll::Ready(result) = this.right.poll(cx)
        {
            result?;
            *this.right_open = false;
        }
        if *this.left_open || *this.right_open {
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }
}
