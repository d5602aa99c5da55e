//! Whole numbers and truth values. Overflow wraps, as in Go.

use super::{Args, Function, Outcome, Scope, list};
use gotmpl::{TemplateError, Value};

/// The longest sequence that `seq` makes.
const LONGEST: i64 = 1_000_000;

pub const TABLE: &[(&str, Function)] = &[
    ("add", |_, args| whole(args, i64::wrapping_add)),
    ("sub", |_, args| whole(args, i64::wrapping_sub)),
    ("mul", |_, args| whole(args, i64::wrapping_mul)),
    ("div", |_, args| non_zero(args, "division by zero").and_then(|()| whole(args, i64::wrapping_div))),
    ("mod", |_, args| non_zero(args, "modulo by zero").and_then(|()| whole(args, i64::wrapping_rem))),
    ("seq", seq),
    ("atoi", atoi),
    ("parseBool", parse_bool),
];

fn whole(args: &Args<'_>, function: fn(i64, i64) -> i64) -> Outcome {
    args.exactly(2)?;
    Ok(Value::Int(function(args.int(0)?, args.int(1)?)))
}

fn non_zero(args: &Args<'_>, reason: &str) -> Result<(), TemplateError> {
    args.exactly(2)?;
    if args.int(1)? == 0 { Err(args.failed(reason)) } else { Ok(()) }
}

/// As confd 0.16: empty when the last is below the first, so that a count of nothing ranges over nothing.
fn seq(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(2)?;
    let (first, last) = (args.int(0)?, args.int(1)?);
    if last.saturating_sub(first) >= LONGEST {
        return Err(args.failed(format!("more than {LONGEST} numbers")));
    }
    Ok(list((first..=last).map(Value::Int)))
}

fn atoi(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    let text = args.text(0)?;
    let number = text.parse().map_err(|_| args.failed(format!("strconv.Atoi: parsing {text:?}: invalid syntax")))?;
    Ok(Value::Int(number))
}

fn parse_bool(_: &Scope, args: &Args<'_>) -> Outcome {
    args.exactly(1)?;
    match args.text(0)? {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
        text => Err(args.failed(format!("strconv.ParseBool: parsing {text:?}: invalid syntax"))),
    }
}
