//! The doors: the one way by which events from outside reach the compact stack. `form` reads
//! the classic bodies, `compact` checks what they ask for, `classic` and `api` answer,
//! `access` decides who may, `serve` owns the sockets, and `rest` puts them together.

pub mod access;
pub mod api;
pub mod attempts;
pub mod bulk;
pub mod chain;
pub mod classic;
pub mod compact;
pub mod crowd;
pub mod exposition;
pub mod form;
pub mod gauges;
pub mod health;
pub mod json;
pub mod later;
pub mod lookup;
pub mod nases;
pub mod openapi;
pub mod plan;
pub mod posting;
pub mod refusals;
pub mod rest;
pub mod schemas;
pub mod serve;
pub mod tails;
pub mod trail;
pub mod waiting;
pub mod wanted;
