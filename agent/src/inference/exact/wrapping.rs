//! Integer arithmetic modulo the size of the type.
#![allow(unreachable_pub, missing_docs)]

use tract_onnx::tract_core::bin_to_super_type;
use tract_onnx::tract_core::element_wise;
use tract_onnx::tract_core::tract_linalg;
use tract_onnx::tract_hir::internal::*;

bin_to_super_type!(wrapping_add, WrappingAdd,
    neutral_element: 0,
    [i8, i16, i32, i64, u8, u16, u32, u64] => |c, a, b| *c = a.wrapping_add(*b));

bin_to_super_type!(wrapping_sub, WrappingSub,
    is_commutative: false,
    neutral_element: 0,
    [i8, i16, i32, i64, u8, u16, u32, u64] => |c, a, b| *c = a.wrapping_sub(*b));

bin_to_super_type!(wrapping_mul, WrappingMul,
    neutral_element: 1,
    [i8, i16, i32, i64, u8, u16, u32, u64] => |c, a, b| *c = a.wrapping_mul(*b));

bin_to_super_type!(wrapping_pow, WrappingPow,
    is_commutative: false,
    neutral_element: 1,
    [i8, i16, i32, i64, u8, u16, u32, u64] => |c, a, b| *c = a.power(*b));

element_wise!(wrapping_neg, WrappingNeg, [i8, i16, i32, i64] => |_, xs| {
    xs.iter_mut().for_each(|x| *x = x.wrapping_neg());
    Ok(())
});

element_wise!(wrapping_abs, WrappingAbs, [i8, i16, i32, i64] => |_, xs| {
    xs.iter_mut().for_each(|x| *x = x.wrapping_abs());
    Ok(())
});

/// Powers of integers.
trait Power: Copy {
    /// Modulo the size of the type. Below zero, what is left of the fraction: nothing but for ±1; of
    /// zero the least number, as ONNX Runtime has it.
    fn power(self, exponent: Self) -> Self;
}

macro_rules! powers {
    ($($type:ty),*) => { $(
        impl Power for $type {
            fn power(self, exponent: Self) -> Self {
                #[allow(unused_comparisons)]
                if exponent < 0 {
                    let odd = exponent & 1 == 1;
                    return match (self, Self::MAX.wrapping_add(self) == Self::MAX - 1) {
                        (0, _) => Self::MIN,
                        (1, _) => 1,
                        (_, true) if odd => self,
                        (_, true) => 1,
                        _ => 0,
                    };
                }
                let (mut power, mut square, mut left) = (1, self, exponent);
                while left > 0 {
                    if left & 1 == 1 {
                        power = Self::wrapping_mul(power, square);
                    }
                    square = square.wrapping_mul(square);
                    left >>= 1;
                }
                power
            }
        }
    )* };
}

powers!(i8, i16, i32, i64, u8, u16, u32, u64);
