//! Rewrites a parsed template so that every operation whose cost fuel does not see is charged to a budget first.
//!
//! minijinja's fuel counts instructions. A hostile template makes one instruction cost anything: text doubled in a
//! loop, lists that contain a list many times over, constants multiplied while compiling. So operands pass through the
//! functions named here, whose names no template can spell.

use minijinja::{
    Value,
    machinery::{
        Span,
        ast::{
            BinOp, BinOpKind, Call, CallArg, CallBlock, CallType, Compare, CompareOp, Const, Continue, Do, EmitExpr,
            Expr, Filter, FilterBlock, ForLoop, GetAttr, GetItem, IfCond, IfExpr, List, Macro, Map, Set, SetBlock,
            Spanned, Stmt, Template, Test, Tuple, UnaryOp, UnaryOpKind, Var, WithBlock,
        },
    },
};

use super::TemplateError;

/// Charges a value's own length and returns it.
pub(super) const COUNT: &str = "<count>";
/// Charges what finding one item costs and returns the value.
pub(super) const TOUCH: &str = "<touch>";
/// Charges a value and everything in it and returns it.
pub(super) const WEIGH: &str = "<weigh>";
/// Turns a lazy sequence into a list.
pub(super) const FLATTEN: &str = "<flatten>";
/// Refuses a value that could make a namespace contain itself.
pub(super) const ACYCLIC: &str = "<acyclic>";
/// Charges a value that is iterated over and returns it; null is refused.
pub(super) const EACH: &str = "<each>";
/// Turns a value into text.
pub(super) const TEXT: &str = "<text>";
/// Adds.
pub(super) const SUM: &str = "<sum>";
/// Multiplies.
pub(super) const PRODUCT: &str = "<product>";
/// Divides for the remainder, or formats a text.
pub(super) const REMAINDER: &str = "<remainder>";
/// Slices.
pub(super) const SLICE: &str = "<slice>";
/// Calls `loop.cycle`, which minijinja panics in without arguments.
pub(super) const CYCLE: &str = "<cycle>";
/// Finds an attribute that is named as a dictionary's method.
pub(super) const METHOD: &str = "<method>";

/// Filters that refuse null; the lazy ones make nothing of it.
const ITERATING: [&str; 8] = ["groupby", "join", "list", "max", "min", "reverse", "sort", "unique"];
/// Methods of dictionaries that keys are named as: a schema of JSON has `items`.
const MAP_METHODS: [&str; 11] =
    ["clear", "copy", "fromkeys", "get", "items", "keys", "pop", "popitem", "setdefault", "update", "values"];
/// Filters that look at no more of their input than its own items.
const SHALLOW: [&str; 11] =
    ["count", "d", "default", "first", "items", "last", "length", "list", "rejectattr", "reverse", "selectattr"];

/// The same template, guarded.
pub(super) fn block<'a>(statements: &[Stmt<'a>]) -> Result<Vec<Stmt<'a>>, TemplateError> {
    statements.iter().map(statement).collect()
}

/// The same statement, guarded; one that needs other templates is refused.
pub(super) fn statement<'a>(statement: &Stmt<'a>) -> Result<Stmt<'a>, TemplateError> {
    Ok(match statement {
        Stmt::Template(s) => Stmt::Template(like(s, Template { children: block(&s.children)? })),
        Stmt::EmitExpr(s) => Stmt::EmitExpr(like(s, EmitExpr { expr: expr(&s.expr) })),
        // As an expression it passes the formatter, which charges it.
        Stmt::EmitRaw(s) => {
            Stmt::EmitExpr(like(s, EmitExpr { expr: Expr::Const(like(s, Const { value: Value::from(s.raw) })) }))
        }
        Stmt::ForLoop(s) => Stmt::ForLoop(like(s, for_loop(s)?)),
        Stmt::IfCond(s) => {
            let (true_body, false_body) = (block(&s.true_body)?, block(&s.false_body)?);
            Stmt::IfCond(like(s, IfCond { expr: expr(&s.expr), true_body, false_body }))
        }
        Stmt::WithBlock(s) => {
            stays(&s.body)?;
            let assignments = s.assignments.iter().map(|(target, value)| (expr_as_is(target), expr(value))).collect();
            Stmt::WithBlock(like(s, WithBlock { assignments, body: block(&s.body)? }))
        }
        Stmt::Set(s) => {
            let value = if sets_attribute(&s.target) { call(ACYCLIC, expr(&s.expr)) } else { expr(&s.expr) };
            Stmt::Set(like(s, Set { target: expr_as_is(&s.target), expr: value }))
        }
        Stmt::SetBlock(s) => {
            stays(&s.body)?;
            let filter = s.filter.as_ref().map(expr);
            Stmt::SetBlock(like(s, SetBlock { target: expr_as_is(&s.target), filter, body: block(&s.body)? }))
        }
        Stmt::FilterBlock(s) => {
            stays(&s.body)?;
            Stmt::FilterBlock(like(s, FilterBlock { filter: expr(&s.filter), body: block(&s.body)? }))
        }
        Stmt::Macro(s) => Stmt::Macro(like(s, macro_decl(s)?)),
        Stmt::CallBlock(s) => {
            let (call, decl) = (like(&s.call, call_parts(&s.call)), like(&s.macro_decl, macro_decl(&s.macro_decl)?));
            Stmt::CallBlock(like(s, CallBlock { call, macro_decl: decl }))
        }
        Stmt::Continue(s) => Stmt::Continue(like(s, Continue)),
        Stmt::Break(s) => Stmt::Break(like(s, minijinja::machinery::ast::Break)),
        Stmt::Do(s) => Stmt::Do(like(s, Do { call: like(&s.call, call_parts(&s.call)) })),
        Stmt::AutoEscape(_) => return Err(TemplateError::Tag { tag: "autoescape" }),
        Stmt::Block(_) => return Err(TemplateError::Tag { tag: "block" }),
        Stmt::Import(_) | Stmt::FromImport(_) => return Err(TemplateError::Tag { tag: "import" }),
        Stmt::Extends(_) => return Err(TemplateError::Tag { tag: "extends" }),
        Stmt::Include(_) => return Err(TemplateError::Tag { tag: "include" }),
    })
}

/// Refuses statements that `break` or `continue` a loop around them: minijinja leaves a scope or a capture open then.
fn stays(statements: &[Stmt<'_>]) -> Result<(), TemplateError> {
    for statement in statements {
        match statement {
            Stmt::Break(_) => return Err(TemplateError::Tag { tag: "break out of a block" }),
            Stmt::Continue(_) => return Err(TemplateError::Tag { tag: "continue out of a block" }),
            Stmt::IfCond(s) => {
                stays(&s.true_body)?;
                stays(&s.false_body)?;
            }
            Stmt::ForLoop(s) => stays(&s.else_body)?,
            // Others are checked on their own.
            Stmt::Template(_)
            | Stmt::EmitExpr(_)
            | Stmt::EmitRaw(_)
            | Stmt::WithBlock(_)
            | Stmt::Set(_)
            | Stmt::SetBlock(_)
            | Stmt::AutoEscape(_)
            | Stmt::FilterBlock(_)
            | Stmt::Block(_)
            | Stmt::Import(_)
            | Stmt::FromImport(_)
            | Stmt::Extends(_)
            | Stmt::Include(_)
            | Stmt::Macro(_)
            | Stmt::CallBlock(_)
            | Stmt::Do(_) => {}
        }
    }
    Ok(())
}

fn for_loop<'a>(s: &ForLoop<'a>) -> Result<ForLoop<'a>, TemplateError> {
    Ok(ForLoop {
        target: expr_as_is(&s.target),
        iter: through(EACH, &s.iter),
        filter_expr: s.filter_expr.as_ref().map(expr),
        recursive: s.recursive,
        body: block(&s.body)?,
        else_body: block(&s.else_body)?,
    })
}

fn macro_decl<'a>(s: &Macro<'a>) -> Result<Macro<'a>, TemplateError> {
    stays(&s.body)?;
    // minijinja sets the last argument first, but a default may name an argument before it: so it is set in the body.
    let (mut defaults, mut body) = (Vec::new(), Vec::new());
    let defaulted = s.args.iter().skip(s.args.len().saturating_sub(s.defaults.len()));
    for (arg, default) in defaulted.zip(&s.defaults) {
        let span = default.span();
        let missing = Expr::Const(Spanned::new(Const { value: Value::UNDEFINED }, span));
        if let (Expr::Const(_), _) | (_, Expr::List(_) | Expr::Tuple(_)) = (default, arg) {
            defaults.push(expr(default));
            continue;
        }
        defaults.push(missing);
        let test = Test { name: "undefined", expr: expr_as_is(arg), args: Vec::new() };
        let set = Stmt::Set(Spanned::new(Set { target: expr_as_is(arg), expr: expr(default) }, span));
        let (true_body, false_body) = (vec![set], Vec::new());
        let when = IfCond { expr: Expr::Test(Spanned::new(test, span)), true_body, false_body };
        body.push(Stmt::IfCond(Spanned::new(when, span)));
    }
    body.extend(block(&s.body)?);
    Ok(Macro { name: s.name, args: s.args.iter().map(expr_as_is).collect(), defaults, body })
}

/// The same expression, guarded.
fn expr<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::Var(_) | Expr::Const(_) => expr_as_is(e),
        Expr::Slice(s) => {
            let none = || Expr::Const(like(s, Const { value: Value::from(()) }));
            let [start, stop, step] = [&s.start, &s.stop, &s.step].map(|part| part.as_ref().map_or_else(none, expr));
            call_all(SLICE, s.span(), vec![expr(&s.expr), start, stop, step])
        }
        Expr::UnaryOp(s) => {
            let op = if matches!(s.op, UnaryOpKind::Not) { UnaryOpKind::Not } else { UnaryOpKind::Neg };
            Expr::UnaryOp(like(s, UnaryOp { op, expr: counted(&s.expr) }))
        }
        Expr::BinOp(s) => binary(s),
        Expr::Compare(s) => {
            let ops = s.ops.iter().map(|op| CompareOp { op: op.op, expr: weighed(&op.expr) }).collect();
            Expr::Compare(like(s, Compare { expr: weighed(&s.expr), ops }))
        }
        Expr::IfExpr(s) => {
            let [test_expr, true_expr] = [&s.test_expr, &s.true_expr].map(expr);
            Expr::IfExpr(like(s, IfExpr { test_expr, true_expr, false_expr: s.false_expr.as_ref().map(expr) }))
        }
        Expr::Filter(s) => {
            let guarded = if SHALLOW.contains(&s.name) { counted } else { weighed };
            let input = |e: &Expr<'a>| if ITERATING.contains(&s.name) { call(EACH, guarded(e)) } else { guarded(e) };
            let (input, args) = (s.expr.as_ref().map(input), arguments(&s.args, weighed));
            call(FLATTEN, Expr::Filter(like(s, Filter { name: s.name, expr: input, args })))
        }
        Expr::Test(s) => {
            Expr::Test(like(s, Test { name: s.name, expr: expr(&s.expr), args: arguments(&s.args, weighed) }))
        }
        Expr::GetAttr(s) if MAP_METHODS.contains(&s.name) => {
            let name = Expr::Const(like(s, Const { value: Value::from(s.name) }));
            call_all(METHOD, s.span(), vec![expr(&s.expr), name])
        }
        Expr::GetAttr(s) => Expr::GetAttr(like(s, GetAttr { expr: expr(&s.expr), name: s.name })),
        Expr::GetItem(s) => {
            let (base, subscript_expr) = (through(TOUCH, &s.expr), weighed(&s.subscript_expr));
            Expr::GetItem(like(s, GetItem { expr: base, subscript_expr }))
        }
        Expr::Call(s) => Expr::Call(like(s, call_parts(s))),
        Expr::List(s) => Expr::List(like(s, List { items: s.items.iter().map(expr).collect() })),
        Expr::Tuple(s) => Expr::Tuple(like(s, Tuple { items: s.items.iter().map(expr).collect() })),
        Expr::Map(s) => {
            // Keys are hashed with all that is in them.
            let (keys, values) = (s.keys.iter().map(weighed).collect(), s.values.iter().map(expr).collect());
            Expr::Map(like(s, Map { keys, values }))
        }
    }
}

fn binary<'a>(s: &Spanned<BinOp<'a>>) -> Expr<'a> {
    let sides = || vec![expr(&s.left), expr(&s.right)];
    let guarded = match s.op {
        BinOpKind::Add => return call_all(SUM, s.span(), sides()),
        BinOpKind::Mul => return call_all(PRODUCT, s.span(), sides()),
        BinOpKind::Rem => return call_all(REMAINDER, s.span(), sides()),
        BinOpKind::ScAnd | BinOpKind::ScOr => {
            return Expr::BinOp(like(s, BinOp { op: s.op, left: counted(&s.left), right: expr(&s.right) }));
        }
        BinOpKind::Concat => |e: &Expr<'a>| through(TEXT, e),
        BinOpKind::Eq
        | BinOpKind::Ne
        | BinOpKind::Lt
        | BinOpKind::Lte
        | BinOpKind::Gt
        | BinOpKind::Gte
        | BinOpKind::Sub
        | BinOpKind::Div
        | BinOpKind::FloorDiv
        | BinOpKind::Pow
        | BinOpKind::In => weighed,
    };
    Expr::BinOp(like(s, BinOp { op: s.op, left: guarded(&s.left), right: guarded(&s.right) }))
}

fn call_parts<'a>(s: &Call<'a>) -> Call<'a> {
    match s.identify_call() {
        CallType::Method(receiver, "cycle") => {
            let callee = Expr::Var(Spanned::new(Var { id: CYCLE }, s.expr.span()));
            let receiver = CallArg::Pos(counted(receiver));
            Call { expr: callee, args: [vec![receiver], arguments(&s.args, weighed)].into_iter().flatten().collect() }
        }
        CallType::Method(receiver, name) => {
            let receiver = counted(receiver);
            let callee = Expr::GetAttr(Spanned::new(GetAttr { expr: receiver, name }, s.expr.span()));
            Call { expr: callee, args: arguments(&s.args, weighed) }
        }
        CallType::Function(_) | CallType::Block(_) => {
            Call { expr: expr_as_is(&s.expr), args: arguments(&s.args, counted) }
        }
        CallType::Object(callee) => Call { expr: expr(callee), args: arguments(&s.args, counted) },
    }
}

fn arguments<'a>(args: &[CallArg<'a>], guarded: fn(&Expr<'a>) -> Expr<'a>) -> Vec<CallArg<'a>> {
    let argument = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(value) => CallArg::Pos(guarded(value)),
        CallArg::Kwarg(name, value) => CallArg::Kwarg(name, guarded(value)),
        CallArg::PosSplat(value) => CallArg::PosSplat(weighed(value)),
        CallArg::KwargSplat(value) => CallArg::KwargSplat(weighed(value)),
    };
    args.iter().map(argument).collect()
}

fn weighed<'a>(e: &Expr<'a>) -> Expr<'a> {
    through(WEIGH, e)
}

fn counted<'a>(e: &Expr<'a>) -> Expr<'a> {
    through(COUNT, e)
}

/// A constant costs what its source does; anything else goes through `function`, which also keeps chains of operators
/// from being folded while compiling, in time quadratic in their length.
fn through<'a>(function: &'static str, e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::Const(_) => expr_as_is(e),
        Expr::Var(_)
        | Expr::Slice(_)
        | Expr::UnaryOp(_)
        | Expr::BinOp(_)
        | Expr::Compare(_)
        | Expr::IfExpr(_)
        | Expr::Filter(_)
        | Expr::Test(_)
        | Expr::GetAttr(_)
        | Expr::GetItem(_)
        | Expr::Call(_)
        | Expr::List(_)
        | Expr::Tuple(_)
        | Expr::Map(_) => call(function, expr(e)),
    }
}

fn call<'a>(function: &'static str, argument: Expr<'a>) -> Expr<'a> {
    let span = argument.span();
    call_all(function, span, vec![argument])
}

fn call_all<'a>(function: &'static str, span: Span, arguments: Vec<Expr<'a>>) -> Expr<'a> {
    let callee = Expr::Var(Spanned::new(Var { id: function }, span));
    Expr::Call(Spanned::new(Call { expr: callee, args: arguments.into_iter().map(CallArg::Pos).collect() }, span))
}

/// A copy of a name, a constant or the target of an assignment.
fn expr_as_is<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::Var(s) => Expr::Var(like(s, Var { id: s.id })),
        Expr::Const(s) => Expr::Const(like(s, Const { value: s.value.clone() })),
        Expr::GetAttr(s) => Expr::GetAttr(like(s, GetAttr { expr: expr_as_is(&s.expr), name: s.name })),
        Expr::List(s) => Expr::List(like(s, List { items: s.items.iter().map(expr_as_is).collect() })),
        Expr::Tuple(s) => Expr::Tuple(like(s, Tuple { items: s.items.iter().map(expr_as_is).collect() })),
        Expr::Slice(_)
        | Expr::UnaryOp(_)
        | Expr::BinOp(_)
        | Expr::Compare(_)
        | Expr::IfExpr(_)
        | Expr::Filter(_)
        | Expr::Test(_)
        | Expr::GetItem(_)
        | Expr::Call(_)
        | Expr::Map(_) => expr(e),
    }
}

/// Whether assigning to `target` changes a namespace.
fn sets_attribute(target: &Expr<'_>) -> bool {
    match target {
        Expr::GetAttr(_) => true,
        Expr::List(s) => s.items.iter().any(sets_attribute),
        Expr::Tuple(s) => s.items.iter().any(sets_attribute),
        Expr::Var(_)
        | Expr::Const(_)
        | Expr::Slice(_)
        | Expr::UnaryOp(_)
        | Expr::BinOp(_)
        | Expr::Compare(_)
        | Expr::IfExpr(_)
        | Expr::Filter(_)
        | Expr::Test(_)
        | Expr::GetItem(_)
        | Expr::Call(_)
        | Expr::Map(_) => false,
    }
}

/// `new` where `old` stood.
fn like<T, U>(old: &Spanned<T>, new: U) -> Spanned<U> {
    Spanned::new(new, old.span())
}
