//! Corrections to a parsed template, so that it means what it means in Go.
//!
//! - `x.a.b` becomes a call of [`FIELD`], which knows pairs and times; with arguments, of [`METHOD`].
//! - What is printed passes [`PRINT`], which prints numbers and pairs as Go does.
//! - What `printf` prints with `%v` passes [`VERB`], for the same reason.
//! - `{{template "name"}}` without an argument sees nothing, not the caller's dot.

use gotmpl::parse::{ActionNode, CommandNode, Expr, ListNode, Node, Number, PipeNode, Pos, SmolStr, TemplateNode};
use std::sync::Arc;

/// Takes a value and the names of fields.
pub const FIELD: &str = "_field";
/// Takes a value, the name of a method, and its arguments.
pub const METHOD: &str = "_method";
/// Takes a value and gives its text.
pub const PRINT: &str = "_print";
/// Takes the format and the place of one of its arguments, and the argument.
pub const VERB: &str = "_verb";
/// Gives nothing.
pub const NOTHING: &str = "_nothing";

/// What a template names.
#[derive(Debug, Default)]
pub struct Names {
    /// Functions, with the line of their use.
    pub functions: Vec<(String, usize)>,
    /// First fields of the outermost value.
    pub root_fields: Vec<String>,
    /// Literal first arguments of `include`.
    pub includes: Vec<String>,
    /// How many `with` and `range` surround the present place: within them, dot is something else.
    depth: usize,
}

/// Corrects a list of nodes and gathers what it names.
pub fn list(list: &mut ListNode, names: &mut Names) {
    for node in &mut list.nodes {
        match node {
            Node::List(inner) => self::list(inner, names),
            Node::Action(action) => self::action(action, names),
            Node::If(branch) => {
                pipe(&mut branch.pipe, names);
                self::list(&mut branch.body, names);
                branch.else_body.iter_mut().for_each(|body| self::list(body, names));
            }
            Node::Range(branch) | Node::With(branch) => {
                pipe(&mut branch.pipe, names);
                names.depth += 1;
                self::list(&mut branch.body, names);
                names.depth -= 1;
                branch.else_body.iter_mut().for_each(|body| self::list(body, names));
            }
            Node::Template(invocation) => template(invocation, names),
            Node::Define(define) => self::list(&mut define.body, names),
            Node::Text(_) | Node::Break(_) | Node::Continue(_) => {}
        }
    }
}

fn action(action: &mut ActionNode, names: &mut Names) {
    pipe(&mut action.pipe, names);
    if action.pipe.decl.is_empty() {
        action.pipe.commands.push(call(action.pos, PRINT, []));
    }
}

fn template(invocation: &mut TemplateNode, names: &mut Names) {
    match &mut invocation.pipe {
        Some(argument) => pipe(argument, names),
        None => invocation.pipe = Some(pipeline(invocation.pos, call(invocation.pos, NOTHING, []))),
    }
}

fn pipe(pipe: &mut PipeNode, names: &mut Names) {
    for (at, mut command) in std::mem::take(&mut pipe.commands).into_iter().enumerate() {
        self::command(&mut command, at > 0, names);
        pipe.commands.extend(printf(&mut command, at > 0));
        pipe.commands.push(command);
    }
}

/// Wraps the arguments of a `printf`; the command for the piped one comes back.
fn printf(command: &mut CommandNode, is_piped: bool) -> Option<CommandNode> {
    let pos = command.pos;
    let [Expr::Identifier(_, function), format, arguments @ ..] = command.args.as_mut_slice() else { return None };
    if function != "printf" {
        return None;
    }
    let verb = |at: usize, argument: Option<Expr>| {
        let place = Expr::Number(pos, Number::Int(at as i64));
        call(pos, VERB, [format.clone(), place].into_iter().chain(argument))
    };
    for (at, argument) in arguments.iter_mut().enumerate() {
        *argument = Expr::Pipe(pos, pipeline(pos, verb(at, Some(argument.clone()))));
    }
    is_piped.then(|| verb(arguments.len(), None))
}

fn command(command: &mut CommandNode, is_piped: bool, names: &mut Names) {
    if let [Expr::Identifier(_, function), Expr::String(_, name), ..] = command.args.as_slice()
        && function == "include"
    {
        names.includes.push(name.to_string());
    }
    let has_arguments = is_piped || command.args.len() > 1;
    for (at, argument) in command.args.iter_mut().enumerate() {
        let may_be_method = at == 0 && has_arguments;
        if may_be_method && split_fields(argument).is_some() {
            continue;
        }
        expression(argument, names);
    }
    if has_arguments
        && let Some((pos, mut receiver, mut fields)) = split_fields(&command.args[0])
        && let Some(method) = fields.pop()
    {
        note_root(&receiver, &fields, names);
        expression(&mut receiver, names);
        let receiver = if fields.is_empty() { receiver } else { field_call(pos, receiver, &fields) };
        let arguments = command.args.drain(1..).collect::<Vec<_>>();
        let head = [receiver, Expr::String(pos, Arc::from(method.as_str()))];
        *command = call(pos, METHOD, head.into_iter().chain(arguments));
    }
}

fn expression(expression: &mut Expr, names: &mut Names) {
    match expression {
        Expr::Identifier(pos, name) => names.functions.push((name.to_string(), pos.line)),
        Expr::Pipe(_, inner) => pipe(inner, names),
        _ => {}
    }
    if let Some((pos, mut receiver, fields)) = split_fields(expression) {
        note_root(&receiver, &fields, names);
        self::expression(&mut receiver, names);
        *expression = field_call(pos, receiver, &fields);
    }
}

/// The value and the fields of an access; `None` for what accesses no field.
fn split_fields(expression: &Expr) -> Option<(Pos, Expr, Vec<SmolStr>)> {
    match expression {
        Expr::Field(pos, fields) => Some((*pos, Expr::Dot(*pos), fields.clone())),
        Expr::Variable(pos, name, fields) if !fields.is_empty() => {
            Some((*pos, Expr::Variable(*pos, name.clone(), Vec::new()), fields.clone()))
        }
        Expr::Chain(pos, inner, fields) if !fields.is_empty() => Some((*pos, (**inner).clone(), fields.clone())),
        _ => None,
    }
}

fn note_root(receiver: &Expr, fields: &[SmolStr], names: &mut Names) {
    let is_root = match receiver {
        Expr::Dot(_) => names.depth == 0,
        Expr::Variable(_, name, _) => name == "$",
        _ => false,
    };
    if let (true, Some(first)) = (is_root, fields.first()) {
        names.root_fields.push(first.to_string());
    }
}

fn field_call(pos: Pos, receiver: Expr, fields: &[SmolStr]) -> Expr {
    let names = fields.iter().map(|field| Expr::String(pos, Arc::from(field.as_str())));
    Expr::Pipe(pos, pipeline(pos, call(pos, FIELD, std::iter::once(receiver).chain(names))))
}

fn call(pos: Pos, function: &str, arguments: impl IntoIterator<Item = Expr>) -> CommandNode {
    let args = std::iter::once(Expr::Identifier(pos, SmolStr::new(function))).chain(arguments).collect();
    CommandNode { pos, args }
}

fn pipeline(pos: Pos, command: CommandNode) -> PipeNode {
    PipeNode { pos, decl: Vec::new(), commands: vec![command], is_assign: false }
}
