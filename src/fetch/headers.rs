//! Proves a file of a layer whose index lies beside it, and may lie: before its first byte is read, the headers in the archive must say
//! of it what the index said.
//!
//! Headers lie just before the content, so they are in the same chunk as its beginning as a rule, and cost no request.

use std::sync::Arc;

use super::content::LayerContent;
use super::lazy::FetchError;
use crate::layer::soci::headers::{self, Claim, HeadersError};

/// How often headers are fetched for one proof: what was fetched may be evicted before it could be read.
const FETCHES: u32 = 4;

impl LayerContent {
    /// Whether its files with content must be proved before they are read.
    pub fn must_be_proved(&self) -> bool {
        self.claims().is_some()
    }

    /// Brings the headers of the file whose content begins at that byte of the decoded space, proves it, and then calls `done`: on
    /// this thread if they are here.
    pub fn prove_file(
        self: &Arc<Self>,
        content: u64,
        done: impl FnOnce(Result<(), FetchError>) + Send + 'static,
    ) {
        match self.claim(content) {
            Ok(Some(claim)) => self.prove_claim(claim, FETCHES, Box::new(done)),
            Ok(None) => done(Ok(())),
            Err(error) => done(Err(error)),
        }
    }

    /// Where in the decoded space the headers of that file lie, if it must be proved by them.
    ///
    /// # Errors
    /// If nothing is known of it.
    pub fn headers_of(&self, content: u64) -> Result<Option<std::ops::Range<u64>>, FetchError> {
        Ok(self.claim(content)?.map(|claim| claim.headers))
    }

    /// Proves that file without waiting; false if its headers are not here.
    ///
    /// # Errors
    /// [`FetchError::Headers`] if it is not what the index says.
    pub fn prove_now(&self, content: u64) -> Result<bool, FetchError> {
        match self.claim(content)? {
            Some(claim) => self.proves(&claim),
            None => Ok(true),
        }
    }

    fn prove_claim(
        self: &Arc<Self>,
        claim: Claim,
        fetches: u32,
        done: Box<dyn FnOnce(Result<(), FetchError>) + Send>,
    ) {
        let content = self.clone();
        self.fetch(claim.headers.clone(), move |fetched| {
            let proved = fetched.and_then(|()| content.proves(&claim));
            match proved {
                Ok(true) => done(Ok(())),
                Ok(false) if fetches > 1 => content.prove_claim(claim, fetches - 1, done),
                Ok(false) => {
                    let evicted = std::io::Error::other("they were evicted again and again");
                    done(Err(content.headers_error(claim.headers.end, evicted.into())));
                }
                Err(error) => done(Err(error)),
            }
        });
    }

    /// What is claimed of that file, if anything must be proved in this layer.
    fn claim(&self, content: u64) -> Result<Option<Claim>, FetchError> {
        let claim = match self.claims() {
            None => return Ok(None),
            Some(None) => Err(HeadersError::Damaged("the file cannot be read")),
            Some(Some(claims)) => claims.get(content),
        };
        claim.map(Some).map_err(|cause| self.headers_error(content, cause))
    }

    /// False if the headers are not here.
    fn proves(&self, claim: &Claim) -> Result<bool, FetchError> {
        let wrong = |cause| self.headers_error(claim.headers.end, cause);
        // Bounded when the claim was read.
        let mut bytes = vec![0; (claim.headers.end - claim.headers.start) as usize];
        if !self.read(claim.headers.start, &mut bytes).map_err(|error| wrong(error.into()))? {
            return Ok(false);
        }
        headers::prove(claim, &bytes).map(|()| true).map_err(wrong)
    }

    fn headers_error(&self, offset: u64, cause: HeadersError) -> FetchError {
        FetchError::Headers { layer: self.layer().clone(), offset, cause: Arc::new(cause) }
    }
}
