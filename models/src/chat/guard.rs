//! Rewrites a parsed template so that every operation whose cost fuel does not see is charged to a budget first.
//!
//! minijinja's fuel counts instructions. A hostile template makes one instruction cost anything: text doubled in a
//! loop, lists that contain a list many times over, constants multiplied while compiling. So operands pass through the
//! functions named here, whose names no template can spell.

use minijinja::{
    Value,
    machinery::ast::{
        BinOp, BinOpKind, Call, CallArg, CallBlock, CallType, Compare, CompareOp, Const, Continue, Do, EmitExpr, Expr,
        Filter, FilterBlock, ForLoop, GetAttr, GetItem, IfCond, IfExpr, List, Macro, Map, Set, SetBlock, Slice,
        Spanned, Stmt, Template, Test, Tuple, UnaryOp, UnaryOpKind, Var, WithBlock,
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
/// Multiplies.
pub(super) const PRODUCT: &str = "<product>";

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
            let assignments = s.assignments.iter().map(|(target, value)| (expr_as_is(target), expr(value))).collect();
            Stmt::WithBlock(like(s, WithBlock { assignments, body: block(&s.body)? }))
        }
        Stmt::Set(s) => {
            let value = if sets_attribute(&s.target) { call(ACYCLIC, expr(&s.expr)) } else { expr(&s.expr) };
            Stmt::Set(like(s, Set { target: expr_as_is(&s.target), expr: value }))
        }
        Stmt::SetBlock(s) => {
            let filter = s.filter.as_ref().map(expr);
            Stmt::SetBlock(like(s, SetBlock { target: expr_as_is(&s.target), filter, body: block(&s.body)? }))
        }
        Stmt::FilterBlock(s) => {
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

fn for_loop<'a>(s: &ForLoop<'a>) -> Result<ForLoop<'a>, TemplateError> {
    Ok(ForLoop {
        target: expr_as_is(&s.target),
        iter: counted(&s.iter),
        filter_expr: s.filter_expr.as_ref().map(expr),
        recursive: s.recursive,
        body: block(&s.body)?,
        else_body: block(&s.else_body)?,
    })
}

fn macro_decl<'a>(s: &Macro<'a>) -> Result<Macro<'a>, TemplateError> {
    Ok(Macro {
        name: s.name,
        args: s.args.iter().map(expr_as_is).collect(),
        defaults: s.defaults.iter().map(expr).collect(),
        body: block(&s.body)?,
    })
}

/// The same expression, guarded.
fn expr<'a>(e: &Expr<'a>) -> Expr<'a> {
    match e {
        Expr::Var(_) | Expr::Const(_) => expr_as_is(e),
        Expr::Slice(s) => {
            let [start, stop, step] = [&s.start, &s.stop, &s.step].map(|part| part.as_ref().map(expr));
            call(FLATTEN, Expr::Slice(like(s, Slice { expr: counted(&s.expr), start, stop, step })))
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
            let (input, args) = (s.expr.as_ref().map(guarded), arguments(&s.args, weighed));
            call(FLATTEN, Expr::Filter(like(s, Filter { name: s.name, expr: input, args })))
        }
        Expr::Test(s) => {
            Expr::Test(like(s, Test { name: s.name, expr: expr(&s.expr), args: arguments(&s.args, weighed) }))
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
    let guarded = match s.op {
        BinOpKind::Mul => {
            let callee = Expr::Var(like(s, Var { id: PRODUCT }));
            let args = [&s.left, &s.right].map(|side| CallArg::Pos(expr(side))).into();
            return Expr::Call(like(s, Call { expr: callee, args }));
        }
        BinOpKind::ScAnd | BinOpKind::ScOr => {
            return Expr::BinOp(like(s, BinOp { op: s.op, left: counted(&s.left), right: expr(&s.right) }));
        }
        // Lists share their items.
        BinOpKind::Add => counted,
        BinOpKind::Eq
        | BinOpKind::Ne
        | BinOpKind::Lt
        | BinOpKind::Lte
        | BinOpKind::Gt
        | BinOpKind::Gte
        | BinOpKind::Sub
        | BinOpKind::Div
        | BinOpKind::FloorDiv
        | BinOpKind::Rem
        | BinOpKind::Pow
        | BinOpKind::Concat
        | BinOpKind::In => weighed,
    };
    Expr::BinOp(like(s, BinOp { op: s.op, left: guarded(&s.left), right: guarded(&s.right) }))
}

fn call_parts<'a>(s: &Call<'a>) -> Call<'a> {
    match s.identify_call() {
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
    let callee = Expr::Var(Spanned::new(Var { id: function }, span));
    Expr::Call(Spanned::new(Call { expr: callee, args: vec![CallArg::Pos(argument)] }, span))
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
