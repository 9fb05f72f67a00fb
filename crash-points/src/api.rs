//! A client of an API server whose writes are named effects.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Method, Request};
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::{Layer, Service};

use crate::{Effects, around_async, unlisted};

/// Which effect a request is, by its method and path; `None` where it only reads. An error is the name of a write that is
/// not in the list.
pub type Naming<E> = fn(&Method, &str) -> Result<Option<E>, String>;

/// A client whose writes pass their points.
///
/// # Errors
/// As of [`Client::try_from`].
pub fn client<E: Effects + Send>(config: Config, naming: Naming<E>) -> kube::Result<Client> {
    Ok(ClientBuilder::try_from(config)?.with_layer(&Points(naming)).build())
}

/// Lets every write of a client pass its points.
#[derive(Clone, Copy)]
pub struct Points<E>(pub Naming<E>);

impl<S, E> Layer<S> for Points<E> {
    type Service = Named<S, E>;

    fn layer(&self, inner: S) -> Named<S, E> {
        Named { inner, naming: self.0 }
    }
}

/// See [`Points`].
#[derive(Clone)]
pub struct Named<S, E> {
    inner: S,
    naming: Naming<E>,
}

impl<S, E> Service<Request<Body>> for Named<S, E>
where
    E: Effects + Send,
    S: Service<Request<Body>>,
    S::Future: Send + 'static,
    S::Response: 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let effect = (self.naming)(request.method(), request.uri().path());
        let answer = self.inner.call(request);
        Box::pin(async move {
            match effect {
                Ok(None) => answer.await,
                Ok(Some(effect)) => around_async(effect, answer).await,
                Err(name) => {
                    unlisted(&name);
                    answer.await
                }
            }
        })
    }
}
